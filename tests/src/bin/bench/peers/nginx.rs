//! nginx of the distribution, with its stream module for opaque bytes.

use std::fmt::Write as _;

use tulle_tests::Program;

use crate::Options;
use crate::bare::Speaks;
use crate::pair::{Pair, Purpose, Site, free_address};
use crate::pki::{NAME, Side};

/// Where Debian keeps modules.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) fn start(purpose: Purpose, site: &Site, options: &Options) -> Pair {
    let (front, between) = (free_address(), free_address());
    let app = site.backend(purpose.speaks);
    let ca = site.pki.ca();
    let ca = ca.display();
    let (crt, key) = (|side| site.pki.file(side, "crt"), |side| site.pki.file(side, "key"));
    let connects = format!(
        "proxy_ssl_certificate {};\nproxy_ssl_certificate_key {};\nproxy_ssl_trusted_certificate {ca};\n\
         proxy_ssl_verify on;\nproxy_ssl_name {NAME};\nproxy_ssl_protocols TLSv1.3;\nproxy_ssl_session_reuse off;\n",
        crt(Side::Outbound).display(),
        key(Side::Outbound).display()
    );
    let accepts = format!(
        "ssl_certificate {};\nssl_certificate_key {};\nssl_client_certificate {ca};\nssl_verify_client on;\nssl_protocols TLSv1.3;\n",
        crt(Side::Inbound).display(),
        key(Side::Inbound).display()
    );
    let run = |name: &str, body: &str| {
        let folder = site.folder.path(&format!("nginx-{name}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let module =
            if purpose.speaks == Speaks::Tcp { format!("load_module {STREAM};\n") } else { String::new() };
        let text = format!(
            "{module}daemon off;\nmaster_process off;\nworker_processes 1;\nuser root;\npid {0}/pid;\nerror_log {0}/error.log crit;\n\
             events {{ worker_connections {1}; }}\n{body}",
            folder.display(),
            2 * site.connections()
        );
        let config = site.file(&format!("nginx-{name}.conf"), &text);
        let program = Program::new(format!("nginx-{name}"), &options.nginx);
        site.start(program.flag("-p", &folder).flag("-c", config).flag("-e", folder.join("error.log")))
    };
    let (outbound, inbound) = match purpose.speaks {
        Speaks::Tcp => (
            format!(
                "stream {{ server {{ listen {front}; proxy_ssl on; proxy_pass {between};\n{connects} }} }}\n"
            ),
            format!("stream {{ server {{ listen {between} ssl; proxy_pass {app};\n{accepts} }} }}\n"),
        ),
        Speaks::Http1 | Speaks::Http2 => {
            let mut outbound = format!("location / {{ proxy_pass https://next;\n{connects} }}\n");
            for number in 0..purpose.routes {
                let _ =
                    write!(outbound, "location /route-{number} {{ proxy_pass https://next;\n{connects} }}\n");
            }
            let inbound = "location / { proxy_pass http://next; }\n";
            (
                http(&format!("listen {front};"), &between.to_string(), &outbound),
                http(&format!("listen {between} ssl;\n{accepts}"), &app.to_string(), inbound),
            )
        }
    };
    Pair::of(front, [run("outbound", &outbound), run("inbound", &inbound)])
}

fn http(listen: &str, next: &str, locations: &str) -> String {
    format!(
        "http {{\naccess_log off;\nkeepalive_timeout 600s;\nkeepalive_requests 1000000000;\nproxy_http_version 1.1;\n\
         proxy_set_header Connection \"\";\nproxy_set_header Host $host;\nproxy_max_temp_file_size 0;\n\
         upstream next {{ server {next}; keepalive 40000; keepalive_requests 1000000000; keepalive_timeout 600s; }}\n\
         server {{ {listen}\n{locations} }}\n}}\n"
    )
}
