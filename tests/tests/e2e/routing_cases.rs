//! What routes match and what their filters change: manifest, request, who answers and what they saw. The cases are after those
//! of the Gateway API's conformance suite for meshes.

mod filters;
mod retries;
mod sessions;

use std::fmt::Write as _;

use http::Request;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tulle_tests::app::App;
use tulle_tests::echo::{self, Answer};
use tulle_tests::{Workload, World, eventually};

/// `web`, which calls `shop`; the routes send it to `v1` or `v2`, whose applications answer with what they were asked.
struct Shop {
    world: World,
    web: Workload,
    grpc: bool,
    /// Keep running what answers.
    _versions: [(App, Workload); 2],
}

// === impl Shop ===

impl Shop {
    async fn start(grpc: bool) -> Self {
        let world = World::strict().await;
        for service in ["shop", "v1", "v2"] {
            world.service(service, if grpc { "kubernetes.io/h2c" } else { "http" });
        }
        let version = async |name: &'static str| {
            let answer = async move |request: Request<Incoming>| echo::mirror(name, &request);
            let app = if grpc { App::http2(answer).await } else { App::http1(answer).await };
            let workload = world.workload(name).serves(name, app.address()).start().await;
            (app, workload)
        };
        let versions = [version("v1").await, version("v2").await];
        let web = world.workload("web").calls("shop").start().await;
        Self { world, web, grpc, _versions: versions }
    }

    /// Writes a route of these rules, and waits until it is in force as a whole and both versions can be reached.
    async fn rules(&self, name: &str, rules: &str) {
        let kind = if self.grpc { "GRPCRoute" } else { "HTTPRoute" };
        let mut text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: shop}}\nspec:\n  parentRefs:\n  - \
             {{group: \"\", kind: Service, name: shop, port: 8080}}\n  rules:\n"
        );
        for line in rules.lines() {
            writeln!(text, "  {line}").unwrap();
        }
        for version in ["v1", "v2"] {
            let told = if self.grpc {
                format!("method: {{service: {name}, method: {version}}}")
            } else {
                format!("path: {{type: Exact, value: /{name}/{version}}}")
            };
            writeln!(text, "  - matches: [{{{told}}}]\n    backendRefs: [{{name: {version}, port: 8080}}]")
                .unwrap();
        }
        self.world.yaml("route.yaml", &text);
        for version in ["v1", "v2"] {
            eventually(&format!("{name} is in force for {version}"), async || {
                let answer = self.ask(&format!("POST /{name}/{version}")).await;
                if answer.by() == version { Ok(()) } else { Err(answer.by()) }
            })
            .await;
        }
    }

    /// Asks `METHOD TARGET [name:value …]`.
    async fn ask(&self, asked: &str) -> Answer {
        let stream = TcpStream::connect(self.web.outbound("shop")).await.unwrap();
        echo::ask(stream, self.grpc, "shop", asked).await
    }

    /// Who may answer it, by what `tulle explain` says.
    fn explained(&self, asked: &str) -> Vec<String> {
        let mut words = asked.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let mut fields: Vec<_> = words.map(|word| word.replacen(':', ": ", 1)).collect();
        if self.grpc {
            fields.extend(["content-type: application/grpc".to_owned(), "te: trailers".to_owned()]);
        }
        let to = format!("http://shop:8080{target}");
        let mut arguments = vec!["--from", "default/web", "--to", &to, "-X", method];
        arguments.extend(fields.iter().flat_map(|field| ["-H", field]));
        let said = self.world.explain(&arguments);
        let reasons = std::iter::once(&said["fails"]).filter(|fails| !fails.is_null());
        let reasons =
            reasons.map(|fails| format!("{} {}", fails["status"], fails["reason"].as_str().unwrap()));
        let redirected = said["taken"]["redirect"]["status"].as_u64().map(|status| status.to_string());
        let backends = said["backends"].as_array().unwrap().iter();
        let services = backends.filter_map(|share| share["service"].as_str()?.split(['/', ':']).nth(1));
        reasons.chain(redirected).chain(services.map(str::to_owned)).collect()
    }

    /// Asks each, and says of all of them who answered, and that `tulle explain` says the same.
    async fn go(&self, name: &str, rules: &str, cases: &[(&str, &str)]) {
        self.rules(name, rules).await;
        let mut wrong = Vec::new();
        for (asked, expected) in cases {
            let by = self.ask(asked).await.by();
            if by != *expected {
                wrong.push(format!("{asked}: {by} instead of {expected}"));
            }
            let said = self.explained(asked);
            if !said.contains(&by) {
                wrong.push(format!("{asked}: {by}, and explained was {said:?}"));
            }
        }
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
    }
}

const NOT_FOUND: &str = "404 route_not_found";

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_headers_choose_the_backend() {
    let shop = Shop::start(false).await;
    shop.go(
        "path-or-header",
        "
- matches:
  - path: {type: PathPrefix, value: /}
  - headers: [{name: version, value: one}]
  backendRefs: [{name: v1, port: 8080}]
- name: second
  matches:
  - path: {type: PathPrefix, value: /v2}
  - headers: [{name: version, value: two}]
  backendRefs: [{name: v2, port: 8080}]",
        &[
            ("GET /", "v1"),
            ("GET /example", "v1"),
            ("GET / version:one", "v1"),
            ("GET /v2", "v2"),
            ("GET /v2/", "v2"),
            ("GET /v2/example?q=/v1", "v2"),
            ("GET / Version:two", "v2"),
            ("GET /v2example", "v1"),
            ("GET /foo/v2/example", "v1"),
            // The longer prefix comes before the header.
            ("GET /v2 version:one", "v2"),
        ],
    )
    .await;
    shop.go(
        "headers",
        "
- matches: [{headers: [{name: version, value: one}]}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{headers: [{name: version, value: two}]}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{headers: [{name: version, value: two}, {name: color, value: orange}]}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{headers: [{name: color, value: blue}]}, {headers: [{name: color, value: green}]}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{headers: [{name: color, value: red}]}, {headers: [{name: color, value: yellow}]}]
  backendRefs: [{name: v2, port: 8080}]",
        &[
            ("GET / version:one", "v1"),
            ("GET / version:two", "v2"),
            ("GET / version:two color:orange", "v1"),
            // As many headers either way: the earlier rule.
            ("GET / version:two color:blue", "v2"),
            ("GET / version:one color:red", "v1"),
            ("GET / color:orange", NOT_FOUND),
            ("GET / other:one", NOT_FOUND),
            ("GET / version:One", NOT_FOUND),
            ("GET / color:blue", "v1"),
            ("GET / color:green", "v1"),
            ("GET / color:red", "v2"),
            ("GET / color:yellow", "v2"),
            ("GET / color:purple", NOT_FOUND),
        ],
    )
    .await;
    shop.go(
        "exact-and-longest",
        "
- matches: [{path: {type: PathPrefix, value: /a}}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{path: {type: PathPrefix, value: /a/b/}}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{path: {type: Exact, value: /a/b/c}}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{path: {type: Exact, value: /one}}]
  backendRefs: [{name: v2, port: 8080}]",
        &[
            ("GET /a", "v1"),
            ("GET /a/bc", "v1"),
            ("GET /a/b", "v2"),
            ("GET /a/b/d", "v2"),
            ("GET /a/b/c?d", "v1"),
            ("GET /a/b/c/", "v2"),
            ("GET /one", "v2"),
            ("GET /one/", NOT_FOUND),
            ("GET /One", NOT_FOUND),
            ("GET /ab", NOT_FOUND),
        ],
    )
    .await;
    shop.go(
        "path-and-header",
        "
- matches: [{path: {value: /a}, headers: [{name: version, value: two}]}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{path: {value: /a}}]
  backendRefs: [{name: v1, port: 8080}]",
        &[
            ("GET /a/x version:two", "v2"),
            ("GET /a/x version:three", "v1"),
            ("GET /a/x", "v1"),
            ("GET /b version:two", NOT_FOUND),
        ],
    )
    .await;
    shop.go(
        "regular-expressions",
        r"
- matches: [{path: {type: RegularExpression, value: '/v[0-9]+/items'}}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{path: {value: /h}, headers: [{name: agent, type: RegularExpression, value: '(?i)curl/.*'}]}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{path: {value: /v1}}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{path: {type: Exact, value: /v7/items}}]
  backendRefs: [{name: v2, port: 8080}]",
        &[
            ("GET /v1/items?q", "v1"),
            ("GET /v12/items", "v1"),
            ("GET /v1/items/3", "v2"),
            ("GET /v7/items", "v2"),
            ("GET /x/v1/items", NOT_FOUND),
            ("GET /vx/items", NOT_FOUND),
            ("GET /h agent:Curl/8.1", "v2"),
            ("GET /h agent:not-curl/8.1", NOT_FOUND),
            ("GET /h", NOT_FOUND),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn query_parameters_and_methods_choose_the_backend() {
    let shop = Shop::start(false).await;
    shop.go(
        "query",
        "
- matches: [{queryParams: [{name: animal, value: whale}]}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{queryParams: [{name: animal, value: dolphin}]}]
  backendRefs: [{name: v2, port: 8080}]
- matches:
  - queryParams: [{name: animal, value: dolphin}, {name: color, value: blue}]
  - queryParams: [{name: ANIMAL, value: Whale}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{path: {value: /path}, queryParams: [{name: animal, value: whale}]}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{headers: [{name: version, value: one}], queryParams: [{name: animal, value: whale}]}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{queryParams: [{name: n, type: RegularExpression, value: '[0-9]+'}]}]
  backendRefs: [{name: v2, port: 8080}]",
        &[
            ("GET /?animal=whale", "v1"),
            ("GET /?animal=dolphin", "v2"),
            ("GET /?animal=dolphin&color=blue", "v1"),
            ("GET /?color=blue&animal=dolphin", "v1"),
            ("GET /?ANIMAL=Whale", "v1"),
            ("GET /?animal=whale&other=irrelevant", "v1"),
            ("GET /?animal=dolphin&color=yellow", "v2"),
            ("GET /?animal=dolphin&animal=whale", "v2"),
            ("GET /?animal=%77hale", "v1"),
            ("GET /?color=blue", NOT_FOUND),
            ("GET /?animal=dog", NOT_FOUND),
            ("GET /?animal=whaledolphin", NOT_FOUND),
            ("GET /?Animal=whale", NOT_FOUND),
            ("GET /", NOT_FOUND),
            ("GET /path?animal=whale", "v2"),
            ("GET /?animal=whale version:one", "v2"),
            ("GET /path version:one", NOT_FOUND),
            ("GET /?n=12", "v2"),
            ("GET /?n=12x", NOT_FOUND),
        ],
    )
    .await;
    shop.go(
        "method",
        "
- matches: [{method: POST}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{method: GET}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{path: {value: /path}, method: GET}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{headers: [{name: version, value: one}], method: PUT}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{path: {value: /both}, method: PATCH}, {path: {value: /either}, method: DELETE, headers: [{name: version, value: one}]}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{path: {value: /both}}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{headers: [{name: version, value: four}]}]
  backendRefs: [{name: v1, port: 8080}]",
        &[
            ("POST /", "v1"),
            ("GET /", "v2"),
            ("HEAD /", NOT_FOUND),
            ("GET /path", "v1"),
            ("PUT / version:one", "v2"),
            ("PUT /", NOT_FOUND),
            ("PATCH /both", "v1"),
            ("PUT /both", "v2"),
            ("DELETE /either version:one", "v1"),
            ("DELETE /either", NOT_FOUND),
            // A method comes before headers.
            ("GET / version:four", "v2"),
            ("DELETE / version:four", "v1"),
        ],
    )
    .await;
}

/// The conformance suite's request: one field to be set, one to be added to and one to go.
const FIELDS: &str = "x-set:own x-add:own x-remove:own x-other:own";

#[tokio::test(flavor = "multi_thread")]
async fn grpc_methods_choose_the_backend_and_headers_are_changed() {
    let shop = Shop::start(true).await;
    let rules = "
- matches: [{method: {service: shop.Orders, method: List}}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{method: {service: shop.Orders}}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{method: {method: Ping}}]
  backendRefs: [{name: v1, port: 8080}]
- matches: [{method: {service: shop.Orders, method: List}, headers: [{name: version, value: two}]}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{method: {type: RegularExpression, service: 'shop\\.[A-Z]+', method: 'Get.*'}}]
  backendRefs: [{name: v2, port: 8080}]
- matches: [{method: {service: shop.Changed}}]
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: set}], add: [{name: X-Add, value: added}], remove: [X-Remove]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Set, value: set}], add: [{name: X-Add, value: added}], remove: [X-Remove]}}
  backendRefs: [{name: v2, port: 8080}]
- matches: [{method: {service: shop.Split}}]
  backendRefs: [{name: v1, port: 8080, weight: 3}, {name: v2, port: 8080, weight: 1}]
- matches: [{method: {service: shop.Never}}]
  backendRefs: [{name: v1, port: 8080, weight: 0}]";
    // Errors are a call's: HTTP's status is 200.
    let cases = [
        ("POST /shop.Orders/List", "v1"),
        ("POST /shop.Orders/List version:two", "v2"),
        ("POST /shop.Orders/Place", "v2"),
        ("POST /shop.Orders/Ping", "v2"),
        ("POST /shop.Other/Ping", "v1"),
        ("POST /shop.ABC/GetAll", "v2"),
        ("POST /shop.ABC/Set", "200 route_not_found"),
        ("POST /shopxABC/GetAll", "200 route_not_found"),
        ("POST /shop.OrdersOther/List", "200 route_not_found"),
        ("POST /shop.orders/List", "200 route_not_found"),
        ("POST /shop.Never/Do", "200 route_without_backend"),
    ];
    shop.go("calls", rules, &cases).await;
    let answer = shop.ask("POST /shop.Other/List").await;
    assert_eq!((answer.by().as_str(), answer.field("grpc-status").as_str()), ("200 route_not_found", "12"));

    let answer = shop.ask(&format!("POST /shop.Changed/It {FIELDS}")).await;
    let names = ["x-set", "x-add", "x-remove"];
    assert_eq!(names.map(|name| answer.saw_field(name)), ["set", "own,added", "-"]);
    assert_eq!(names.map(|name| answer.field(name)), ["set", "own,added", "-"]);
    assert_eq!((answer.saw("method"), answer.saw("target")), ("POST", "/shop.Changed/It"));

    let mut seconds = 0;
    for _ in 0..400 {
        seconds += usize::from(shop.ask("POST /shop.Split/It").await.by() == "v2");
    }
    // Binomial with p = 0.25: five standard deviations are 43.
    assert!((57..=143).contains(&seconds), "{seconds} of 400 went to the quarter");
}
