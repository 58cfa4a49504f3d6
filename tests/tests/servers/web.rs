//! A web server with TLS of its own: nobody but its client reads what is said.

use tulle_tests::netns::in_a_node;

use crate::{Mesh, declared, large, named, undeclared};

#[test]
#[ignore = "needs nginx-light, openssl and curl"]
fn nginx_proves_itself_to_curl_inside_of_our_tls() {
    in_a_node(async || {
        let ports = [undeclared(8443), declared(9443, "https"), named(10443, "tls-web")];
        let mesh = Mesh::start(&ports).await;
        let keys = mesh
            .client(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=own -days 2 2>err
                 openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout shop.key -out shop.csr -subj /CN=shop 2>err
                 printf 'subjectAltName=DNS:shop.example\\n' >san
                 openssl x509 -req -in shop.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out shop.pem -days 2 -extfile san 2>err
                 pwd",
            )
            .await;
        let keys = keys.trim();
        let listens: String = ports
            .iter()
            .map(|port| format!("listen [::]:{} ssl http2 ipv6only=off; ", port.number))
            .collect();
        let _server = mesh
            .serve(
                &format!(
                    "mkdir www; head -c {} /dev/urandom >www/large; echo fine >www/index.html; chmod -R a+rX www
                     cat >nginx.conf <<END
                     daemon off; user root; pid nginx.pid; error_log stderr;
                     events {{}}
                     http {{
                       access_log off; client_max_body_size 100m; client_body_temp_path body;
                       proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
                       server {{
                         {listens}
                         ssl_certificate {keys}/shop.pem; ssl_certificate_key {keys}/shop.key;
                         root $DIR/www;
                         location /put {{ client_body_in_file_only clean; return 200 taken; }}
                       }}
                     }}
END
                     exec nginx -p $DIR -c nginx.conf",
                    large()
                ),
                &ports,
            )
            .await;
        for to in mesh.addresses() {
            let port = to.port();
            let curl = |more: &str, path: &str| {
                format!(
                    "curl -sS --fail --cacert {keys}/ca.pem --connect-to 'shop.example:{port}:{to}' {more} https://shop.example:{port}/{path}"
                )
            };
            for version in ["--http1.1", "--http2"] {
                assert_eq!(mesh.client(&curl(version, "")).await, "fine\n");
                let said = format!(
                    "-o /dev/null -w '%{{http_version}} %{{ssl_verify_result}} %{{size_download}}' {version}"
                );
                let said = mesh.client(&curl(&said, "large")).await;
                let number = if version == "--http2" { "2" } else { "1.1" };
                assert_eq!(said, format!("{number} 0 {}", large()));
            }
            // Without its authority nobody believes it: the certificate that comes is its own.
            let said = mesh.client(&format!("{} 2>&1 || true", curl("--cacert /dev/null", ""))).await;
            assert!(said.contains("certificate"), "{said}");
        }
        mesh.has_relayed(2000, 4 * large()).await;
    });
}
