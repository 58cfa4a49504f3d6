//! Parsers of single values. Each error says what is wrong; the caller adds where, and which form is accepted.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::ServerName;
use tulle_api::{ACCESS_LOG_ALL, AccessLogFormat, InvalidAccessLog, access_log_statuses};
use tulle_certs::{SpiffeId, TrustDomain};
use tulle_identity::{Address, AddressError};

use super::table::MAX_DURATION;
use super::{HostPort, InboundPort, Locality, OutboundService, PortSet, SeriesLabels, ServicePort};
use crate::state::{ObjectName, is_label, is_subdomain};
use crate::telemetry::access::{Share, Statuses};

pub(super) type Parsed<T> = Result<T, String>;

pub(super) fn name(value: &str) -> Parsed<ObjectName> {
    let (namespace, name) = value.split_once('/').ok_or("there is no `/`")?;
    label(namespace)?;
    if !is_subdomain(name) {
        return Err(format!(
            "`{name}` is not a name (1 to 253 lower-case letters, digits, `-` and `.`, with letters or digits at both ends and around each `.`)"
        ));
    }
    Ok(ObjectName::new(namespace, name))
}

/// A DNS label (RFC 1123 §2.1).
fn label(value: &str) -> Parsed<()> {
    if !is_label(value) {
        return Err(format!(
            "`{value}` is not a name (1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends)"
        ));
    }
    Ok(())
}

pub(super) fn trust_domain(value: &str) -> Parsed<TrustDomain> {
    TrustDomain::new(value).map_err(|error| error.to_string())
}

pub(super) fn spiffe_id(value: &str) -> Parsed<SpiffeId> {
    SpiffeId::parse(value).map_err(|error| error.to_string())
}

pub(super) fn workload_api(value: &str) -> Parsed<Address> {
    value.parse().map_err(|error: AddressError| error.to_string())
}

/// The name in a server's certificate, to be compared with it.
pub(super) fn server_name(value: &str) -> Parsed<String> {
    match ServerName::try_from(value) {
        Ok(_) => Ok(value.to_owned()),
        Err(_) => Err("neither a host name nor an IP address".to_owned()),
    }
}

pub(super) fn locality(value: &str) -> Parsed<Locality> {
    let (region, zone) = value.split_once('/').unwrap_or((value, ""));
    if region.is_empty() || zone.contains('/') {
        return Err("there is no region, or more than one `/`".to_owned());
    }
    Ok(Locality { region: region.to_owned(), zone: zone.to_owned() })
}

pub(super) fn host_port(value: &str) -> Parsed<HostPort> {
    let (host, port_text) = value.rsplit_once(':').ok_or("there is no port")?;
    let port = port(port_text)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inside) => {
            inside.parse::<std::net::Ipv6Addr>().map_err(|_| format!("`{inside}` is not an IPv6 address"))?;
            inside
        }
        None if host.contains(':') => return Err("an IPv6 address needs brackets".to_owned()),
        None => host,
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(allowed) {
        return Err(format!("`{host}` is not a host name or address"));
    }
    Ok(HostPort { host: host.to_owned(), port })
}

fn port(value: &str) -> Parsed<u16> {
    tulle_api::port(value).map_err(|error| error.to_string())
}

pub(super) fn ip(value: &str) -> Parsed<IpAddr> {
    let ip = value.parse::<IpAddr>().map_err(|_| format!("`{value}` is not an IP address"))?;
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("`{value}` is not an address that can be dialled"));
    }
    Ok(ip)
}

fn address(value: &str) -> Parsed<SocketAddr> {
    value.parse().map_err(|_| format!("`{value}` is not an IP address with a port"))
}

pub(super) fn address_or_none(value: &str) -> Parsed<Option<SocketAddr>> {
    if value == "none" { Ok(None) } else { address(value).map(Some) }
}

pub(super) fn addresses(value: &str) -> Parsed<Vec<SocketAddr>> {
    list(value, address)
}

/// `system` is `None`.
pub(super) fn name_servers(value: &str) -> Parsed<Option<Vec<SocketAddr>>> {
    if value == "system" { Ok(None) } else { addresses(value).map(Some) }
}

/// Two or more DNS labels are usual; one will do.
pub(super) fn domain(value: &str) -> Parsed<String> {
    let domain = value.strip_suffix('.').unwrap_or(value).to_ascii_lowercase();
    domain.split('.').try_for_each(label)?;
    Ok(domain)
}

/// Items between commas; `none` for none.
pub(super) fn list<T>(value: &str, item: impl Fn(&str) -> Parsed<T>) -> Parsed<Vec<T>> {
    if value == "none" {
        return Ok(Vec::new());
    }
    // A comma at the end is what a template leaves behind.
    value.trim_end_matches(',').split(',').map(|part| item(part.trim())).collect()
}

pub(super) fn outbound_service(value: &str) -> Parsed<OutboundService> {
    let (listen, service) = value.split_once('=').ok_or_else(|| format!("`{value}` has no `=`"))?;
    let (service, service_port) =
        service.rsplit_once(':').ok_or_else(|| format!("`{service}` has no port"))?;
    Ok(OutboundService { listen: address(listen)?, service: name(service)?, port: port(service_port)? })
}

pub(super) fn inbound_port(value: &str) -> Parsed<InboundPort> {
    let (listen, rest) = value.split_once('=').ok_or_else(|| format!("`{value}` has no `=`"))?;
    let mut parts = rest.split('/');
    let application = address(parts.next().unwrap_or_default())?;
    if application.port() == 0 {
        return Err(format!("`{application}`: the application's port cannot be 0"));
    }
    let services = parts
        .map(|part| {
            let (service, service_port) =
                part.rsplit_once(':').ok_or_else(|| format!("`{part}` has no port"))?;
            label(service)?;
            Ok(ServicePort { service: service.to_owned(), port: port(service_port)? })
        })
        .collect::<Parsed<Vec<_>>>()?;
    Ok(InboundPort { listen: address(listen)?, application, services })
}

pub(super) fn ports(value: &str) -> Parsed<PortSet> {
    list(value, |part| tulle_api::port_range(part).map_err(|error| error.to_string())).map(PortSet)
}

/// The ID of a user or group; the last of them means "none" to the kernel.
pub(super) fn id(value: &str) -> Parsed<u32> {
    match value.parse::<u32>() {
        Ok(id) if id < u32::MAX => Ok(id),
        _ => Err(format!("`{value}` is not an ID from 0 to {}", u32::MAX - 1)),
    }
}

pub(super) fn mark(value: &str) -> Parsed<u32> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    match parsed {
        Ok(mark) if mark > 0 => Ok(mark),
        _ => Err(format!("`{value}` is not a mark from 1 to 0xffffffff")),
    }
}

pub(super) fn subnet(value: &str) -> Parsed<IpNet> {
    let subnet = match value.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip),
        Err(_) => value.parse::<IpNet>().map_err(|_| format!("`{value}` is not a subnet"))?,
    };
    if subnet.trunc() != subnet {
        return Err(format!("`{value}` has bits after its prefix; did you mean `{}`?", subnet.trunc()));
    }
    Ok(subnet)
}

pub(super) fn yes_or_no(value: &str) -> Parsed<bool> {
    choice(value, &[("true", true), ("false", false)])
}

pub(super) fn auto<T>(value: &str, parse: impl Fn(&str) -> Parsed<T>) -> Parsed<Option<T>> {
    if value == "auto" { Ok(None) } else { parse(value).map(Some) }
}

pub(super) fn number(value: &str, least: usize, most: usize) -> Parsed<usize> {
    match value.parse::<usize>() {
        Ok(number) if number < least => Err(format!("less than {least}")),
        Ok(number) if number > most => Err(format!("more than {most}")),
        Ok(number) => Ok(number),
        Err(_) => Err("not a whole number".to_owned()),
    }
}

/// `2`, `0.5` or `500m`, as Kubernetes writes CPU quantities.
pub(super) fn millis_of_cpu(value: &str) -> Parsed<u64> {
    let millis = match value.strip_suffix('m') {
        Some(millis) => millis.parse::<u64>().map_err(|_| format!("`{millis}` is not a whole number"))?,
        None => {
            let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
            let digits = |text: &str| text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit());
            if whole.is_empty() || !digits(whole) || !digits(fraction) {
                return Err("not a number of cores".to_owned());
            }
            let whole: u64 = whole.parse().map_err(|_| "not a number of cores")?;
            let thousandths: u64 =
                format!("{fraction:0<3}")[..3].parse().map_err(|_| "not a number of cores")?;
            whole * 1000 + thousandths
        }
    };
    if millis == 0 || millis > 1_024_000 {
        return Err("not between 1m and 1024 cores".to_owned());
    }
    Ok(millis)
}

/// More than nothing, and at most a day.
pub(super) fn duration(value: &str) -> Parsed<Duration> {
    let duration = any_duration(value)?;
    if duration.is_zero() {
        return Err("it must be more than nothing".to_owned());
    }
    Ok(duration)
}

/// From a second to half a minute, or `none`.
pub(super) fn report_interval(value: &str) -> Parsed<Option<Duration>> {
    if value == "none" {
        return Ok(None);
    }
    let interval = any_duration(value)?;
    if !(Duration::from_secs(1)..=Duration::from_secs(30)).contains(&interval) {
        return Err("it must be from 1s to 30s, or `none`".to_owned());
    }
    Ok(Some(interval))
}

/// A whole number and a unit, or several (`1m30s`), as Gateway API durations (GEP-2257); at most a day.
pub(super) fn any_duration(value: &str) -> Parsed<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = value;
    if rest.is_empty() {
        return Err("it is empty".to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        if unit.is_empty() {
            return Err("there is no unit".to_owned());
        }
        let number: u32 = number.parse().map_err(|_| "there is no whole number before a unit")?;
        let one = match unit {
            "us" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(format!("`{unit}` is not a unit (us, ms, s, m, h)")),
        };
        total = one
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= MAX_DURATION)
            .ok_or("it is more than a day")?;
        rest = tail;
    }
    Ok(total)
}

/// Labels, or `none` of them.
pub(super) fn series_labels(value: &str) -> Parsed<SeriesLabels> {
    let mut shown = [false; 4];
    for label in list(value, |label| Ok(label.trim().to_owned()))? {
        let known = SeriesLabels::NAMES.iter().position(|name| *name == label);
        shown[known.ok_or_else(|| format!("`{label}` is none of these labels"))?] = true;
    }
    Ok(SeriesLabels(shown))
}

pub(super) fn buckets(value: &str) -> Parsed<Vec<Duration>> {
    let bounds = list(value, duration)?;
    if bounds.is_empty() || bounds.len() > 32 {
        return Err(format!("{} bounds", bounds.len()));
    }
    if bounds.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("the bounds do not ascend".to_owned());
    }
    Ok(bounds)
}

/// Bytes; `KiB` and `MiB` are powers of 1024.
pub(super) fn size(value: &str, least: usize, most: usize) -> Parsed<usize> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let number: usize = number.parse().map_err(|_| "there is no whole number")?;
    let factor = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        other => return Err(format!("`{other}` is not a unit (none, KiB, MiB)")),
    };
    let bytes = number.checked_mul(factor).ok_or("it is too large")?;
    if bytes < least || bytes > most {
        return Err(format!("{bytes} bytes is out of bounds"));
    }
    Ok(bytes)
}

pub(super) fn choice<T: Copy>(value: &str, choices: &[(&str, T)]) -> Parsed<T> {
    choices
        .iter()
        .find(|(name, _)| *name == value)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| "it is none of the choices".to_owned())
}

pub(super) fn log_level(value: &str) -> Parsed<String> {
    tulle_api::log_filter(value).map_err(|error| error.to_string())?;
    Ok(value.to_owned())
}

/// A form of the access log, or a template for its lines.
pub(super) fn access_log(value: &str) -> Parsed<AccessLogFormat> {
    value.parse().map_err(|error: InvalidAccessLog| error.to_string())
}

/// `all`, or `none`, by which nothing is written for its status.
pub(super) fn statuses(value: &str) -> Parsed<Statuses> {
    if value == ACCESS_LOG_ALL {
        return Ok(Statuses::ALL);
    }
    let one = |item: &str| access_log_statuses(item).map_err(|error| error.to_string());
    Ok(list(value, one)?.into_iter().collect())
}

pub(super) fn percent(value: &str) -> Parsed<Share> {
    let percent: f64 = value.parse().map_err(|_| "not a number")?;
    Share::percent(percent).ok_or_else(|| "not from 0 to 100".to_owned())
}
