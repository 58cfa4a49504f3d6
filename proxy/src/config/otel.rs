//! OpenTelemetry's own variables, as its specification names them: where spans go and which are recorded.
//!
//! They are variables only, without flags. In one thing they are not taken as the specification has it: a bad value stops the start, as
//! any of the proxy's does, but for names of propagators that are not known, which are warned about. What the mesh says of
//! tracing holds where no variable says otherwise ([`Tracing::over`]).

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::header::{HeaderName, HeaderValue};

use super::parse::{self, Parsed};
use super::table::{Variable, variables};
use crate::state::ObjectName;
use crate::telemetry::trace::{Collector, Forms, Limits, Propagation, Protocol, Sampler, Sampling};

/// What is said of tracing; `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracing {
    /// Nothing is traced, whatever else is said.
    pub disabled: bool,
    /// Where spans go.
    pub endpoint: Option<Endpoint>,
    /// How they do.
    pub protocol: Option<Protocol>,
    /// Sent with each batch of them.
    pub headers: Option<Vec<(HeaderName, HeaderValue)>>,
    /// How long a collector may take for a batch.
    pub timeout: Option<Duration>,
    /// PEM roots to trust a collector by.
    pub certificate: Option<PathBuf>,
    /// `service.name`.
    pub service_name: Option<String>,
    /// What else is told of the workload.
    pub resource: Vec<(String, String)>,
    /// The sampler's name; the ratio may be said without it.
    pub sampler: Option<String>,
    /// The part of traces that is recorded.
    pub ratio: Option<f64>,
    /// The proxy's own variables say one of these, so that no policy says otherwise. As of [`Tracing::over`].
    pub keeps_sampler: bool,
    /// The forms of headers.
    pub propagation: Option<Propagation>,
    /// Whether connections that carry no requests are told by spans too.
    pub connections: Option<bool>,
    /// Names of forms that nobody here knows.
    pub unknown_propagators: Vec<String>,
    /// How many spans wait.
    pub queue: Option<usize>,
    /// How many are sent at once.
    pub batch: Option<usize>,
    /// How long they wait for each other.
    pub delay: Option<Duration>,
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// With scheme and host.
    pub uri: Uri,
    /// It is that of traces alone; else `/v1/traces` is added to it for OTLP over HTTP.
    pub is_whole: bool,
}

/// The port of OTLP over HTTP, by which its protocol is told.
const HTTP_PORT: u16 = 4318;
const TIMEOUT: Duration = Duration::from_secs(10);

variables! {
    /// Every variable of OpenTelemetry's that is honoured, in the order of the reference page. Of two that set the same, the later wins.
    OTEL_VARIABLES;
    "OTEL_EXPORTER_OTLP_ENDPOINT", "http[s]://<host>[:<port>][/<path>]", None,
        "Where spans are sent by OTLP. Not set, here or for the mesh: nothing is traced, and no header is touched. Over HTTP, `/v1/traces` is added.",
        |config, value| config.tracing.endpoint = Some(Endpoint { uri: uri(value)?, is_whole: false });
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http[s]://<host>[:<port>][/<path>]", None,
        "The same, as it is; wins.",
        |config, value| config.tracing.endpoint = Some(Endpoint { uri: uri(value)?, is_whole: true });
    "OTEL_EXPORTER_OTLP_PROTOCOL", "`grpc` or `http/protobuf`", None,
        "How OTLP is spoken. Not set: `http/protobuf` where the endpoint's port is 4318, else `grpc`.",
        |config, value| config.tracing.protocol = Some(protocol(value)?);
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "`grpc` or `http/protobuf`", None,
        "The same; wins.",
        |config, value| config.tracing.protocol = Some(protocol(value)?);
    "OTEL_EXPORTER_OTLP_HEADERS", "<name>=<value>[,…], values percent-encoded", None,
        "Headers, or metadata of gRPC, that go with each batch: a key of the collector's, say.",
        |config, value| config.tracing.headers = Some(headers(value)?);
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "<name>=<value>[,…], values percent-encoded", None,
        "The same; wins.",
        |config, value| config.tracing.headers = Some(headers(value)?);
    "OTEL_EXPORTER_OTLP_TIMEOUT", "milliseconds, from 1 to 600000", Some("10000"),
        "How long the collector may take for a batch, with tries that follow on the first.",
        |config, value| config.tracing.timeout = Some(millis(value)?);
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "milliseconds, from 1 to 600000", None,
        "The same; wins.",
        |config, value| config.tracing.timeout = Some(millis(value)?);
    "OTEL_EXPORTER_OTLP_CERTIFICATE", "a path", None,
        "PEM roots to trust an `https` collector by. Not set: those of the system.",
        |config, value| config.tracing.certificate = Some(value.into());
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "a path", None,
        "The same; wins.",
        |config, value| config.tracing.certificate = Some(value.into());
    "OTEL_EXPORTER_OTLP_COMPRESSION", "`none`", Some("none"),
        "Batches are not compressed.",
        |_config, value| parse::choice(value, &[("none", ())])?;
    "OTEL_SERVICE_NAME", "a name", None,
        "`service.name` of the spans. Not set: that of the resource's attributes, else the workload's name.",
        |config, value| config.tracing.service_name = Some(value.to_owned());
    "OTEL_RESOURCE_ATTRIBUTES", "<key>=<value>[,…], values percent-encoded", None,
        "What else is told of the workload with its spans, and in place of what the proxy tells: `service.namespace`, `host.name`.",
        |config, value| config.tracing.resource = pairs(value)?;
    "OTEL_TRACES_SAMPLER", "`always_on`, `always_off`, `traceidratio`, or one of them after `parentbased_`", Some("parentbased_traceidratio"),
        "Which traces are recorded. Parent-based: what a request's headers say holds, and the rest is for those that say nothing.",
        |config, value| config.tracing.sampler = Some(sampler(value)?);
    "OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", None,
        "The part of traces that `traceidratio` records. Not set: 0.01 where the sampler is not set either, else 1.",
        |config, value| config.tracing.ratio = Some(ratio(value)?);
    "OTEL_PROPAGATORS", "`tracecontext`, `baggage`, `b3`, `b3multi`[,…] or `none`", None,
        "The headers that are read and written. Not set: all are read, `traceparent` is written, and B3's as they came. `baggage` always passes as it is.",
        |config, value| (config.tracing.propagation, config.tracing.unknown_propagators) = propagators(value);
    "OTEL_TRACES_EXPORTER", "`otlp` or `none`", Some("otlp"),
        "With `none` nothing is traced.",
        |config, value| config.tracing.disabled |= parse::choice(value, &[("otlp", false), ("none", true)])?;
    "OTEL_SDK_DISABLED", "`true` or `false`", Some("false"),
        "With `true` nothing is traced.",
        |config, value| config.tracing.disabled |= parse::yes_or_no(value)?;
    "OTEL_BSP_MAX_QUEUE_SIZE", "a number from 1 to 65536", Some("2048"),
        "How many spans wait to be sent; what comes beyond is dropped and counted.",
        |config, value| config.tracing.queue = Some(parse::number(value, 1, 65_536)?);
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "a number from 1 to 65536", Some("512"),
        "How many spans are sent at once; no more than wait.",
        |config, value| config.tracing.batch = Some(parse::number(value, 1, 65_536)?);
    "OTEL_BSP_SCHEDULE_DELAY", "milliseconds, from 1 to 600000", Some("5000"),
        "How long a span waits for others to be sent with.",
        |config, value| config.tracing.delay = Some(millis(value)?);
}

/// `http://host:port/path`.
pub(crate) fn uri(value: &str) -> Parsed<Uri> {
    let uri: Uri = value.parse().map_err(|_| "it is no address".to_owned())?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("it holds a user or a password, which goes by a header: \
                    OTEL_EXPORTER_OTLP_HEADERS=authorization=Basic%20<user:password in Base64>"
            .to_owned());
    }
    match uri.scheme_str() {
        Some("http" | "https") => Ok(uri),
        Some(other) => Err(format!("`{other}` is none of the schemes `http` and `https`")),
        None => Err(format!("it has no scheme; did you mean `http://{value}`?")),
    }
}

/// As OpenTelemetry names it.
pub(crate) fn protocol(value: &str) -> Parsed<Protocol> {
    parse::choice(value, &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::Http)])
}

fn headers(value: &str) -> Parsed<Vec<(HeaderName, HeaderValue)>> {
    let header = |(name, value): (String, String)| {
        let header = HeaderName::try_from(&name).ok().zip(HeaderValue::try_from(&value).ok());
        // The value may be secret.
        header.ok_or_else(|| format!("`{name}` is no header, or its value is none"))
    };
    pairs(value)?.into_iter().map(header).collect()
}

/// `a=1,b=2`, with values percent-encoded (W3C Baggage §3.2.1, without properties).
fn pairs(value: &str) -> Parsed<Vec<(String, String)>> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` has no `=`"))?;
        let key = key.trim();
        if key.is_empty() {
            return Err(format!("`{part}` has no name before the `=`"));
        }
        let value =
            decode(value.trim()).ok_or_else(|| format!("the value of `{key}` is not percent-encoded"))?;
        Ok((key.to_owned(), value))
    };
    value.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

fn millis(value: &str) -> Parsed<Duration> {
    parse::number(value, 1, 600_000).map(|millis| Duration::from_millis(millis as u64))
}

fn sampler(value: &str) -> Parsed<String> {
    match Sampler::named(value, 1.0) {
        Some(_) => Ok(value.to_owned()),
        None => Err("it is none of the samplers".to_owned()),
    }
}

/// A part of all, 0 to 1.
pub(crate) fn ratio(value: &str) -> Parsed<f64> {
    let ratio: f64 = value.parse().map_err(|_| "it is not a number".to_owned())?;
    if (0.0..=1.0).contains(&ratio) { Ok(ratio) } else { Err("it is not between 0 and 1".to_owned()) }
}

/// The forms, and the names that are of none.
fn propagators(value: &str) -> (Option<Propagation>, Vec<String>) {
    let (mut forms, mut unknown) = (Forms::default(), Vec::new());
    for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "tracecontext" => forms.w3c = true,
            "b3" => forms.b3 = true,
            "b3multi" => forms.b3_multi = true,
            "baggage" | "none" => {}
            other => unknown.push(other.to_owned()),
        }
    }
    (Some(Propagation::Only(forms)), unknown)
}

// A ratio is a number, as `ratio` sees to.
impl Eq for Tracing {}

// === impl Tracing ===

impl Tracing {
    /// What is said here, and where nothing is, there.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        let (mine, its) = (self.clone(), base.clone());
        // A sampler and its ratio are one thing.
        let says_sampling = mine.sampler.is_some() || mine.ratio.is_some();
        let (sampler, ratio) =
            if says_sampling { (mine.sampler, mine.ratio) } else { (its.sampler, its.ratio) };
        // So are an endpoint and how it is spoken to.
        let endpoint = mine.endpoint.is_some();
        Self {
            disabled: mine.disabled || its.disabled,
            protocol: mine.protocol.or_else(|| its.protocol.filter(|_| !endpoint)),
            headers: mine.headers.or_else(|| its.headers.filter(|_| !endpoint)),
            certificate: mine.certificate.or_else(|| its.certificate.filter(|_| !endpoint)),
            endpoint: mine.endpoint.or(its.endpoint),
            timeout: mine.timeout.or(its.timeout),
            service_name: mine.service_name.or(its.service_name),
            resource: if mine.resource.is_empty() { its.resource } else { mine.resource },
            sampler,
            ratio,
            keeps_sampler: says_sampling,
            propagation: mine.propagation.or(its.propagation),
            connections: mine.connections.or(its.connections),
            unknown_propagators: mine.unknown_propagators,
            queue: mine.queue.or(its.queue),
            batch: mine.batch.or(its.batch),
            delay: mine.delay.or(its.delay),
        }
    }

    /// With what a policy says of the workload's sampling, unless the proxy's own variables say it.
    #[must_use]
    pub fn sampled(self, said: Sampling) -> Self {
        if said.is_empty() || self.keeps_sampler {
            return self;
        }
        let Sampler { parent_based, ratio } = self.sampling().said(said);
        let name = if parent_based { "parentbased_traceidratio" } else { "traceidratio" };
        Self { sampler: Some(name.to_owned()), ratio: Some(ratio), ..self }
    }

    /// Where the spans of this workload, on this host, go; `None`: nothing is traced.
    pub fn collector(&self, workload: Option<&ObjectName>, host: &str) -> Option<Collector> {
        let Endpoint { uri, is_whole } = self.endpoint.clone().filter(|_| !self.disabled)?;
        let by_port = if uri.port_u16() == Some(HTTP_PORT) { Protocol::Http } else { Protocol::Grpc };
        let protocol = self.protocol.unwrap_or(by_port);
        let endpoint = match protocol {
            Protocol::Http if !is_whole => {
                let path = uri.path().trim_end_matches('/');
                let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
                format!("{scheme}://{authority}{path}/v1/traces").parse().ok()?
            }
            Protocol::Http | Protocol::Grpc => uri,
        };
        Some(Collector {
            endpoint,
            protocol,
            headers: self.headers.clone().unwrap_or_default(),
            timeout: self.timeout.unwrap_or(TIMEOUT),
            resource: self.resource(workload, host),
        })
    }

    /// What is told of the workload with its spans.
    fn resource(&self, workload: Option<&ObjectName>, host: &str) -> Vec<(String, String)> {
        let mut all = self.resource.clone();
        let mut or = |key: &str, value: &str| {
            if !value.is_empty() && all.iter().all(|(known, _)| known != key) {
                all.push((key.to_owned(), value.to_owned()));
            }
        };
        or("service.name", workload.map_or("tulle-proxy", |workload| &workload.name));
        or("service.namespace", workload.map_or("", |workload| &workload.namespace));
        or("host.name", host);
        or("telemetry.distro.name", "tulle-proxy");
        or("telemetry.distro.version", env!("CARGO_PKG_VERSION"));
        if let Some(name) = &self.service_name {
            all.retain(|(key, _)| key != "service.name");
            all.push(("service.name".to_owned(), name.clone()));
        }
        all
    }

    /// Which traces are recorded.
    pub fn sampling(&self) -> Sampler {
        match &self.sampler {
            None => Sampler { ratio: self.ratio.unwrap_or(Sampler::DEFAULT.ratio), ..Sampler::DEFAULT },
            Some(name) => Sampler::named(name, self.ratio.unwrap_or(1.0)).unwrap_or(Sampler::DEFAULT),
        }
    }

    /// Which headers are read and written.
    pub fn forms(&self) -> Propagation {
        self.propagation.unwrap_or(Propagation::AsItComes)
    }

    /// How many spans are held.
    pub fn limits(&self) -> Limits {
        let queue = self.queue.unwrap_or_else(|| Limits::default().queue);
        Limits {
            queue,
            batch: self.batch.unwrap_or_else(|| Limits::default().batch).min(queue),
            delay: self.delay.unwrap_or_else(|| Limits::default().delay),
        }
    }

    /// What is not known and ignored, for the log.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.unknown_propagators
            .iter()
            .map(|name| format!("OTEL_PROPAGATORS: `{name}` is not known; its headers pass as they are"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn set(lines: &[(&str, &str)]) -> Result<Tracing, String> {
        let mut config = Config::default();
        for variable in OTEL_VARIABLES {
            if let Some((_, value)) = lines.iter().find(|(name, _)| *name == variable.name) {
                (variable.set)(&mut config, value)
                    .map_err(|problem| format!("{}: {problem}", variable.name))?;
            }
        }
        Ok(config.tracing)
    }

    fn collector(lines: &[(&str, &str)]) -> Option<Collector> {
        set(lines).unwrap().collector(Some(&ObjectName::new("shop", "orders")), "node-1")
    }

    #[test]
    fn nothing_is_traced_unless_there_is_a_collector() {
        assert_eq!(collector(&[]), None);
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert!(collector(&[endpoint]).is_some());
        assert_eq!(collector(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), None);
        assert_eq!(collector(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), None);
    }

    #[test]
    fn the_protocol_is_told_by_the_port_unless_it_is_said() {
        let of = |lines: &[(&str, &str)]| {
            let Collector { endpoint, protocol, .. } = collector(lines).unwrap();
            (endpoint.to_string(), protocol)
        };
        let (general, traces) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let said = |value| ("OTEL_EXPORTER_OTLP_PROTOCOL", value);
        for (lines, endpoint, protocol) in [
            (vec![(general, "http://c:4317")], "http://c:4317/", Protocol::Grpc),
            (vec![(general, "http://c:4318")], "http://c:4318/v1/traces", Protocol::Http),
            (vec![(general, "http://c:4318/otlp/")], "http://c:4318/otlp/v1/traces", Protocol::Http),
            (vec![(general, "https://c"), said("http/protobuf")], "https://c/v1/traces", Protocol::Http),
            (vec![(general, "http://c:4318"), said("grpc")], "http://c:4318/", Protocol::Grpc),
            (
                vec![(general, "http://c:4317"), (traces, "http://d:4318/x")],
                "http://d:4318/x",
                Protocol::Http,
            ),
        ] {
            assert_eq!(of(&lines), (endpoint.to_owned(), protocol), "{lines:?}");
        }
    }

    #[test]
    fn the_workload_is_told_unless_it_is_said_otherwise() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        let name = |lines: &[(&str, &str)], key: &str| {
            let resource = collector(&[&[endpoint], lines].concat()).unwrap().resource;
            let found: Vec<_> = resource.iter().filter(|(known, _)| known == key).collect();
            assert_eq!(found.len(), 1, "{resource:?}");
            found[0].1.clone()
        };
        assert_eq!(name(&[], "service.name"), "orders");
        assert_eq!(name(&[], "service.namespace"), "shop");
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a%20b, service.namespace=other,x=%C3%9F");
        assert_eq!(name(&[attributes], "service.name"), "a b");
        assert_eq!(name(&[attributes], "service.namespace"), "other");
        assert_eq!(name(&[attributes], "x"), "ß");
        assert_eq!(name(&[attributes, ("OTEL_SERVICE_NAME", "c")], "service.name"), "c");
    }

    #[test]
    fn a_hundredth_is_recorded_unless_it_is_said_otherwise() {
        let of = |lines: &[(&str, &str)]| set(lines).unwrap().sampling();
        let sampler = |name| ("OTEL_TRACES_SAMPLER", name);
        let ratio = |value| ("OTEL_TRACES_SAMPLER_ARG", value);
        assert_eq!(of(&[]), Sampler { parent_based: true, ratio: 0.01 });
        assert_eq!(of(&[ratio("0.5")]), Sampler { parent_based: true, ratio: 0.5 });
        assert_eq!(of(&[sampler("traceidratio")]), Sampler { parent_based: false, ratio: 1.0 });
        assert_eq!(of(&[sampler("traceidratio"), ratio("0.2")]), Sampler { parent_based: false, ratio: 0.2 });
        assert_eq!(
            of(&[sampler("parentbased_always_off"), ratio("1")]),
            Sampler { parent_based: true, ratio: 0.0 }
        );
    }

    #[test]
    fn what_is_not_known_of_propagators_is_no_error() {
        let tracing = set(&[("OTEL_PROPAGATORS", "tracecontext, baggage,jaeger,b3multi")]).unwrap();
        let forms = Forms { w3c: true, b3_multi: true, b3: false };
        assert_eq!(tracing.forms(), Propagation::Only(forms));
        assert_eq!(tracing.warnings().count(), 1);
        assert_eq!(set(&[]).unwrap().forms(), Propagation::AsItComes);
    }

    #[test]
    fn a_bad_value_is_refused() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@collector:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://secret@collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "no-value"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%zz"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_SDK_DISABLED", "maybe"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ] {
            let error = set(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(name), "{error}");
            assert!(!error.contains("secret"), "{error}");
            assert_eq!(value.contains('@'), error.contains("OTEL_EXPORTER_OTLP_HEADERS="), "{error}");
        }
    }

    #[test]
    fn variables_win_over_the_mesh_and_its_collectors_key_goes_to_nobody_else() {
        let mesh = set(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://mesh:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "key=secret"),
            ("OTEL_TRACES_SAMPLER", "always_on"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ])
        .unwrap();
        let own =
            set(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://own:4317"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")])
                .unwrap();
        let both = own.over(&mesh);
        let collector = both.collector(None, "").unwrap();
        assert_eq!((collector.endpoint.host(), collector.protocol), (Some("own"), Protocol::Grpc));
        assert!(collector.headers.is_empty());
        assert_eq!(both.sampling(), Sampler { parent_based: true, ratio: 0.25 });
        assert!(both.keeps_sampler, "nor does a policy say otherwise");
        assert_eq!(both.limits().delay, Duration::from_millis(100));
        let none = Tracing::default().over(&mesh);
        assert_eq!(none.sampling(), Sampler { parent_based: false, ratio: 1.0 });
        assert!(!none.keeps_sampler);
        // A policy for the workload comes before the mesh, and after its own.
        let tenth = Sampling { millionths: Some(100_000), parent_based: None };
        assert_eq!(none.clone().sampled(tenth).sampling(), Sampler { parent_based: false, ratio: 0.1 });
        let parents = Sampling { millionths: None, parent_based: Some(true) };
        let plain = Tracing::default().sampled(parents.over(tenth));
        assert_eq!(plain.sampling(), Sampler { parent_based: true, ratio: 0.1 });
        assert_eq!(both.clone().sampled(tenth).sampling(), both.sampling());
        assert_eq!(none.collector(None, "").unwrap().headers.len(), 1);
    }
}
