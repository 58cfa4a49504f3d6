//! HAProxy of the distribution.

use std::fmt::Write as _;

use tulle_tests::Program;

use crate::Options;
use crate::bare::Speaks;
use crate::pair::{Pair, Purpose, Site, free_address};
use crate::pki::{NAME, Side};

pub(super) fn start(purpose: Purpose, leg: Speaks, site: &Site, options: &Options) -> Pair {
    let (front, between) = (free_address(), free_address());
    let app = site.backend(purpose.speaks);
    let ca = site.pki.ca();
    let ca = ca.display();
    let own = |side| site.pki.file(side, "pem").display().to_string();
    let plain = if purpose.speaks == Speaks::Http2 { " proto h2" } else { "" };
    let alpn = match leg {
        Speaks::Http1 => " alpn http/1.1",
        Speaks::Http2 => " alpn h2",
        Speaks::Tcp => "",
    };
    let defaults = defaults(purpose.speaks, site.connections());
    let mut outbound = format!("{defaults}frontend out\n  bind {front}{plain}\n");
    let mut backends = String::new();
    let server = format!(
        "  server next {between} ssl crt {} ca-file {ca} verify required verifyhost {NAME} sni str({NAME}) ssl-min-ver TLSv1.3{alpn} \
         pool-max-conn -1\n",
        own(Side::Outbound)
    );
    for number in 0..purpose.routes {
        let _ = writeln!(outbound, "  use_backend route-{number} if {{ path_beg /route-{number} }}");
        let _ = write!(backends, "backend route-{number}\n{server}");
    }
    let _ = write!(outbound, "  default_backend mesh\nbackend mesh\n{server}{backends}");
    let inbound = format!(
        "{defaults}frontend in\n  bind {between} ssl crt {} ca-file {ca} verify required ssl-min-ver TLSv1.3{alpn}\n  \
         default_backend app\nbackend app\n  server app {app}{plain} pool-max-conn -1\n",
        own(Side::Inbound)
    );
    let run = |name: &str, text: &str| {
        let config = site.file(&format!("haproxy-{name}.cfg"), text);
        site.start(Program::new(format!("haproxy-{name}"), &options.haproxy).arg("-db").flag("-f", config))
    };
    Pair::of(front, [run("outbound", &outbound), run("inbound", &inbound)])
}

fn defaults(speaks: Speaks, connections: usize) -> String {
    let mode = match speaks {
        Speaks::Http1 | Speaks::Http2 => "  mode http\n  http-reuse always\n",
        Speaks::Tcp => "  mode tcp\n",
    };
    format!(
        "global\n  nbthread 1\n  maxconn {connections}\n  tune.h2.max-concurrent-streams 1000\ndefaults\n{mode}  timeout connect 5s\n  \
         timeout client 10m\n  timeout server 10m\n"
    )
}
