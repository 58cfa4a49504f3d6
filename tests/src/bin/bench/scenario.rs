//! What is measured.

use crate::bare::Speaks;
use crate::load::{Pace, Plan, Traffic};
use crate::pair::Purpose;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// HTTP/1.1, one connection that is kept.
    #[value(name = "http1-1")]
    Http1One,
    /// HTTP/1.1, 32 connections that are kept.
    #[value(name = "http1-32")]
    Http1,
    /// HTTP/1.1, 256 connections that are kept.
    #[value(name = "http1-256")]
    Http1Many,
    /// HTTP/1.1, a connection for each request.
    #[value(name = "http1-new")]
    Http1New,
    /// HTTP/1.1, 32 connections, a hundred routes looked at in vain.
    #[value(name = "routes-100")]
    Routes,
    /// HTTP/1.1, 32 connections, fifty rules of an AuthorizationPolicy, each looked at to its end, of which the last lets in.
    #[value(name = "rules-50")]
    Rules,
    /// HTTP/2 end to end, 4 connections of 32 streams.
    #[value(name = "http2")]
    Http2,
    /// gRPC's unary call, 4 connections of 32 streams.
    #[value(name = "grpc")]
    Grpc,
    /// A hundred opaque bytes and their echo, 32 connections that are kept.
    #[value(name = "tcp")]
    Tcp,
    /// The same, a connection for each.
    #[value(name = "tcp-new")]
    TcpNew,
    /// One response of a gibibyte.
    #[value(name = "body")]
    Body,
    /// A gibibyte over an opaque connection that was opened soon after others.
    #[value(name = "tcp-body")]
    TcpBody,
    /// 30,000 idle opaque connections.
    #[value(name = "idle-tcp")]
    IdleTcp,
    /// 30,000 idle HTTP/1.1 connections.
    #[value(name = "idle-http")]
    IdleHttp,
    /// 200 requests per second with a fifth of a core for each proxy.
    #[value(name = "quota")]
    Quota,
    /// Memory before, under and after 2,000 connections at once.
    #[value(name = "burst")]
    Burst,
    /// From the start to the first request that may be sent; what it weighs then.
    #[value(name = "start")]
    Start,
}

/// How a scenario is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A closed loop for the cost, then an open loop of so many requests per second for latencies.
    Load(Plan, u32),
    /// Bytes of one response.
    Body(u64),
    /// Connections.
    Idle(usize),
    /// An open loop of so many requests per second under a quota of so many cores.
    Quota(Plan, u32, f64),
    /// A closed loop of so many connections between two of few.
    Burst(usize),
    /// How the pair came up.
    Start,
}

// === impl Scenario ===

impl Scenario {
    pub(crate) fn all() -> Vec<Self> {
        <Self as clap::ValueEnum>::value_variants().to_vec()
    }

    /// As it is asked for.
    pub(crate) fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// As the report explains it.
    pub(crate) fn title(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.and_then(|value| Some(value.get_help()?.to_string())).unwrap_or_default()
    }

    pub(crate) fn purpose(self) -> Purpose {
        let speaks = match self {
            Self::Http2 | Self::Grpc => Speaks::Http2,
            Self::Tcp | Self::TcpNew | Self::TcpBody | Self::IdleTcp => Speaks::Tcp,
            _ => Speaks::Http1,
        };
        let (routes, rules) =
            (if self == Self::Routes { 100 } else { 0 }, if self == Self::Rules { 50 } else { 0 });
        Purpose { speaks, routes, rules }
    }

    pub(crate) fn kind(self) -> Kind {
        let plan = |traffic, connections| Plan { traffic, connections, pace: Pace::Closed };
        let load = |traffic, connections, rate| Kind::Load(plan(traffic, connections), rate);
        match self {
            Self::Http1One => load(Traffic::Http1, 1, 500),
            Self::Http1 | Self::Routes | Self::Rules => load(Traffic::Http1, 32, 1000),
            Self::Http1Many => load(Traffic::Http1, 256, 1000),
            Self::Http1New => load(Traffic::Http1New, 32, 500),
            Self::Http2 => load(Traffic::Http2 { streams: 32 }, 4, 1000),
            Self::Grpc => load(Traffic::Grpc { streams: 32 }, 4, 1000),
            Self::Tcp => load(Traffic::Tcp, 32, 1000),
            Self::TcpNew => load(Traffic::TcpNew, 32, 200),
            Self::Body | Self::TcpBody => Kind::Body(1 << 30),
            Self::IdleTcp | Self::IdleHttp => Kind::Idle(30_000),
            Self::Quota => Kind::Quota(plan(Traffic::Http1, 32), 200, 0.2),
            Self::Burst => Kind::Burst(2000),
            Self::Start => Kind::Start,
        }
    }

    /// Whether it needs a pair that has served nothing else.
    pub(crate) fn alone(self) -> bool {
        matches!(self.kind(), Kind::Idle(_) | Kind::Quota(..) | Kind::Burst(_) | Kind::Start)
    }
}
