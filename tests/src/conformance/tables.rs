//! The tables.

use super::{Ask, CLIENTS, Case, Route};

const fn http(parent: &'static str, rules: &'static str) -> Route {
    Route { kind: "HTTPRoute", namespace: CLIENTS[0], parent, rules }
}

const fn grpc(rules: &'static str) -> Route {
    Route { kind: "GRPCRoute", namespace: CLIENTS[0], parent: "name: echo, port: 7070", rules }
}

const fn ask(to: &'static str, asked: &'static str, expected: &'static str) -> Ask {
    Ask { from: CLIENTS[0], to, asked, expected }
}

const fn consumer(to: &'static str, asked: &'static str, expected: &'static str) -> Ask {
    Ask { from: CLIENTS[1], to, asked, expected }
}

/// The parent of most.
const ECHO: &str = "name: echo, port: 80";

/// The suite's tests, and after them what its manifests leave out of the same subjects.
pub const CASES: &[Case] = &[
    Case {
        name: "MeshBasic",
        routes: &[],
        asks: &[ask("echo-v1:80", "GET /", "echo-v1"), ask("echo-v2:80", "GET /", "echo-v2")],
    },
    Case {
        name: "MeshTrafficSplit",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {type: Exact, value: /v1}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {type: Exact, value: /v2}}]
  backendRefs: [{name: echo-v2, port: 80}]",
        )],
        asks: &[
            ask("echo:80", "GET /v1", "echo-v1"),
            ask("echo:80", "GET /v2", "echo-v2"),
            ask("echo:80", "GET /", "404:route_not_found"),
        ],
    },
    Case {
        name: "MeshPorts",
        routes: &[
            http(
                "name: echo-v1, port: 80",
                "
- filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: v1}]}}]
  backendRefs: [{name: echo-v1, port: 80}]",
            ),
            http(
                "name: echo-v2",
                "
- filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: v2}]}}]
  backendRefs: [{name: echo-v2, port: 80}]",
            ),
        ],
        asks: &[
            ask("echo-v1:80", "GET /", "echo-v1 x-header-set=v1"),
            ask("echo-v1:8080", "GET /", "echo-v1 x-header-set=-"),
            ask("echo-v2:80", "GET /", "echo-v2 x-header-set=v2"),
            ask("echo-v2:8080", "GET /", "echo-v2 x-header-set=v2"),
        ],
    },
    Case {
        name: "MeshFrontend",
        routes: &[http("name: echo-v2, port: 80", FRONTEND)],
        asks: &[
            ask("echo-v2:80", "GET /", "echo-v2 x-header-set=set"),
            ask("pod echo-v2:8080", "GET /", "echo-v2 x-header-set=-"),
        ],
    },
    Case {
        name: "MeshFrontendHostname",
        routes: &[http("name: echo-v2, port: 80", FRONTEND)],
        asks: &[
            ask("echo-v2:80", "GET / host:echo-v1", "echo-v2 x-header-set=set @host=echo-v1"),
            ask("echo-v1:80", "GET / host:echo-v2", "echo-v1 x-header-set=- @host=echo-v2"),
        ],
    },
    Case {
        name: "MeshConsumerRoute",
        routes: &[Route {
            kind: "HTTPRoute",
            namespace: CLIENTS[1],
            parent: "name: echo-v1, namespace: default, port: 80",
            rules: "
- filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: set}]}}]
  backendRefs: [{name: echo-v1, namespace: default, port: 80}]",
        }],
        asks: &[
            consumer("echo-v1:80", "GET /", "echo-v1 x-header-set=set"),
            ask("echo-v1:80", "GET /", "echo-v1 x-header-set=-"),
        ],
    },
    Case {
        name: "MeshHTTPRouteSimpleSameNamespace",
        routes: &[http(ECHO, "\n- backendRefs: [{name: echo-v1, port: 80}]")],
        asks: &[ask("echo:80", "GET /", "echo-v1*100"), consumer("echo:80", "GET /any", "echo-v1*100")],
    },
    Case {
        name: "MeshHTTPRouteMatching",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {type: PathPrefix, value: /}}, {headers: [{name: version, value: one}]}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}]
  backendRefs: [{name: echo-v2, port: 80}]",
        )],
        asks: &[
            ask("echo:80", "GET /", "echo-v1"),
            ask("echo:80", "GET /example", "echo-v1"),
            ask("echo:80", "GET / Version:one", "echo-v1"),
            ask("echo:80", "GET /v2", "echo-v2"),
            ask("echo:80", "GET /v2/example", "echo-v2"),
            ask("echo:80", "GET / Version:two", "echo-v2"),
            ask("echo:80", "GET /v2/", "echo-v2"),
            // By elements, not by characters.
            ask("echo:80", "GET /v2example", "echo-v1"),
            ask("echo:80", "GET /foo/v2/example", "echo-v1"),
        ],
    },
    Case {
        name: "MeshHTTPRouteQueryParamMatching",
        routes: &[http(
            ECHO,
            "
- matches: [{queryParams: [{name: animal, value: whale}]}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{queryParams: [{name: animal, value: dolphin}]}]
  backendRefs: [{name: echo-v2, port: 80}]
- matches:
  - queryParams: [{name: animal, value: dolphin}, {name: color, value: blue}]
  - queryParams: [{name: ANIMAL, value: Whale}]
  backendRefs: [{name: echo-v1, port: 80}]",
        )],
        asks: &[
            ask("echo:80", "GET /?animal=whale", "echo-v1"),
            ask("echo:80", "GET /?animal=dolphin", "echo-v2"),
            ask("echo:80", "GET /?animal=dolphin&color=blue", "echo-v1"),
            ask("echo:80", "GET /?ANIMAL=Whale", "echo-v1"),
            ask("echo:80", "GET /?animal=whale&otherparam=irrelevant", "echo-v1"),
            ask("echo:80", "GET /?animal=dolphin&color=yellow", "echo-v2"),
            ask("echo:80", "GET /?color=blue", "404:route_not_found"),
            ask("echo:80", "GET /?animal=dog", "404:route_not_found"),
            ask("echo:80", "GET /?animal=whaledolphin", "404:route_not_found"),
            ask("echo:80", "GET /", "404:route_not_found"),
        ],
    },
    Case {
        name: "MeshHTTPRouteWeight",
        routes: &[http(
            ECHO,
            "\n- backendRefs: [{name: echo-v1, port: 80, weight: 70}, {name: echo-v2, port: 80, weight: 30}]",
        )],
        asks: &[ask("echo:80", "GET /", "echo-v1*70 echo-v2*30")],
    },
    Case {
        name: "MeshHTTPRouteNamedRule",
        routes: &[http(
            ECHO,
            "
- name: named-rule
  matches: [{path: {type: PathPrefix, value: /named}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {type: PathPrefix, value: /unnamed}}]
  backendRefs: [{name: echo-v2, port: 80}]",
        )],
        asks: &[ask("echo:80", "GET /named", "echo-v1"), ask("echo:80", "GET /unnamed", "echo-v2")],
    },
    Case {
        name: "MeshHTTPRouteRequestHeaderModifier",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {value: /set}}]
  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: rule}]}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {value: /add}}]
  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Header-Add, value: rule}]}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {value: /remove}}]
  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Header-Remove]}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {value: /multiple}}]
  filters:
  - type: RequestHeaderModifier
    requestHeaderModifier:
      set: [{name: X-Set-1, value: s1}, {name: X-Set-2, value: s2}]
      add: [{name: X-Add-1, value: a1}, {name: X-Add-2, value: a2}, {name: X-Add-3, value: a3}]
      remove: [X-Remove-1, X-Remove-2]
  backendRefs: [{name: echo-v1, port: 80}]",
        )],
        asks: HEADERS,
    },
    // The suite's twin of it, in the same file.
    Case {
        name: "MeshHTTPRouteBackendRequestHeaderModifier",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {value: /set}}]
  backendRefs:
  - {name: echo-v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: rule}]}}]}
- matches: [{path: {value: /add}}]
  backendRefs:
  - {name: echo-v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Header-Add, value: rule}]}}]}
- matches: [{path: {value: /remove}}]
  backendRefs:
  - {name: echo-v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Header-Remove]}}]}
- matches: [{path: {value: /multiple}}]
  backendRefs:
  - name: echo-v1
    port: 80
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Set-1, value: s1}, {name: X-Set-2, value: s2}]
        add: [{name: X-Add-1, value: a1}, {name: X-Add-2, value: a2}, {name: X-Add-3, value: a3}]
        remove: [X-Remove-1, X-Remove-2]",
        )],
        asks: HEADERS,
    },
    Case {
        name: "MeshHTTPRouteRewritePath",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {type: PathPrefix, value: /prefix/one}}]
  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /one}}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {type: PathPrefix, value: /strip-prefix}}]
  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {type: PathPrefix, value: /full/one}}]
  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /one}}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {type: PathPrefix, value: /full/rewrite-path-and-modify-headers}}]
  filters:
  - {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /test}}}
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: s}], add: [{name: X-Add, value: a}], remove: [X-Remove]}}
  backendRefs: [{name: echo-v1, port: 80}]",
        )],
        asks: &[
            ask("echo:80", "GET /prefix/one/two", "echo-v1 @target=/one/two"),
            ask("echo:80", "GET /strip-prefix/three", "echo-v1 @target=/three"),
            ask("echo:80", "GET /strip-prefix", "echo-v1 @target=/"),
            ask("echo:80", "GET /full/one/two", "echo-v1 @target=/one"),
            ask(
                "echo:80",
                "GET /full/rewrite-path-and-modify-headers/test x-set:o x-add:o x-remove:o x-keep:o",
                "echo-v1 @target=/test >x-set=s >x-add=o,a >x-remove=- >x-keep=o",
            ),
        ],
    },
    Case {
        name: "MeshHTTPRouteRedirectHostAndStatus",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {value: /hostname-redirect}}]
  filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org}}]
- matches: [{path: {value: /host-and-status}}]
  filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 301}}]",
        )],
        asks: &[
            ask("echo:80", "GET /hostname-redirect", "302 location=http://example.org/hostname-redirect"),
            ask("echo:80", "GET /host-and-status", "301 location=http://example.org/host-and-status"),
        ],
    },
    Case {
        name: "MeshHTTPRouteRedirectPath",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {type: PathPrefix, value: /original-prefix}}]
  filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement-prefix}}}]
- matches: [{path: {type: PathPrefix, value: /full}}]
  filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /full-path-replacement}}}]
- matches: [{path: {type: PathPrefix, value: /path-and-host}}]
  filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
- matches: [{path: {type: PathPrefix, value: /path-and-status}}]
  filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]",
        )],
        asks: &[
            ask("echo:80", "GET /original-prefix/lemon", "302 location=http://echo/replacement-prefix/lemon"),
            ask("echo:80", "GET /full/path/original", "302 location=http://echo/full-path-replacement"),
            ask("echo:80", "GET /path-and-host/lemon", "302 location=http://example.org/new/lemon"),
            ask("echo:80", "GET /path-and-status/lemon", "301 location=http://echo/new/lemon"),
        ],
    },
    Case {
        name: "MeshHTTPRouteRedirectPort",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {value: /port}}]
  filters: [{type: RequestRedirect, requestRedirect: {port: 8083}}]
- matches: [{path: {value: /port-and-host}}]
  filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, port: 8083}}]
- matches: [{path: {value: /port-and-status}}]
  filters: [{type: RequestRedirect, requestRedirect: {port: 8083, statusCode: 301}}]
- matches: [{path: {value: /port-and-host-and-status}}]
  filters: [{type: RequestRedirect, requestRedirect: {port: 8083, hostname: example.org, statusCode: 302}}]",
        )],
        asks: &[
            ask("echo:80", "GET /port", "302 location=http://echo:8083/port"),
            ask("echo:80", "GET /port-and-host", "302 location=http://example.org:8083/port-and-host"),
            ask("echo:80", "GET /port-and-status", "301 location=http://echo:8083/port-and-status"),
            ask(
                "echo:80",
                "GET /port-and-host-and-status",
                "302 location=http://example.org:8083/port-and-host-and-status",
            ),
        ],
    },
    Case {
        name: "MeshHTTPRouteSchemeRedirect",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {value: /scheme}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]
- matches: [{path: {value: /scheme-and-host}}]
  filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, scheme: https}}]
- matches: [{path: {value: /scheme-and-status}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]
- matches: [{path: {value: /scheme-and-host-and-status}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: example.org, statusCode: 302}}]",
        )],
        asks: &[
            ask("echo:80", "GET /scheme", "302 location=https://echo/scheme"),
            ask("echo:80", "GET /scheme-and-host", "302 location=https://example.org/scheme-and-host"),
            ask("echo:80", "GET /scheme-and-status", "301 location=https://echo/scheme-and-status"),
            ask(
                "echo:80",
                "GET /scheme-and-host-and-status",
                "302 location=https://example.org/scheme-and-host-and-status",
            ),
        ],
    },
    Case {
        name: "MeshHTTPRoute303Redirect",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {value: /303}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 303}}]",
        )],
        asks: &[ask("echo:80", "GET /303", "303 location=https://echo/303")],
    },
    Case {
        name: "MeshHTTPRoute307Redirect",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {value: /307}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 307}}]",
        )],
        asks: &[ask("echo:80", "POST /307", "307 location=https://echo/307")],
    },
    Case {
        name: "MeshHTTPRoute308Redirect",
        routes: &[http(
            ECHO,
            "
- matches: [{path: {value: /308}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 308}}]",
        )],
        asks: &[ask("echo:80", "POST /308", "308 location=https://echo/308")],
    },
    Case {
        name: "MeshGRPCRouteWeight",
        routes: &[grpc(
            "\n- backendRefs: [{name: echo-v1, port: 7070, weight: 70}, {name: echo-v2, port: 7070, weight: 30}]",
        )],
        asks: &[ask("echo:7070", "POST /proto.EchoTestService/Echo", "echo-v1*70 echo-v2*30")],
    },
    Case {
        name: "MeshGRPCRouteRequestHeaderModifier",
        routes: &[grpc(
            "
- matches: [{headers: [{name: op, value: set}]}]
  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: rule}]}}]
  backendRefs: [{name: echo-v1, port: 7070}]
- matches: [{headers: [{name: op, value: add}]}]
  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Header-Add, value: rule}]}}]
  backendRefs: [{name: echo-v1, port: 7070}]
- matches: [{headers: [{name: op, value: remove}]}]
  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Header-Remove]}}]
  backendRefs: [{name: echo-v2, port: 7070}]",
        )],
        asks: &[
            ask("echo:7070", "POST /proto.EchoTestService/Echo op:set", "echo-v1 >x-header-set=rule"),
            ask(
                "echo:7070",
                "POST /proto.EchoTestService/Echo op:set x-header-set:own",
                "echo-v1 >x-header-set=rule",
            ),
            ask(
                "echo:7070",
                "POST /proto.EchoTestService/Echo op:add x-header-add:own",
                "echo-v1 >x-header-add=own,rule",
            ),
            ask(
                "echo:7070",
                "POST /proto.EchoTestService/Echo op:remove x-header-remove:own",
                "echo-v2 >x-header-remove=-",
            ),
        ],
    },
];

const FRONTEND: &str = "
- filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: set}]}}]
  backendRefs: [{name: echo-v2, port: 80}]";

/// What the modifiers of a rule or of its backend do.
const HEADERS: &[Ask] = &[
    ask("echo:80", "GET /set other:o", "echo-v1 >x-header-set=rule >other=o"),
    ask("echo:80", "GET /set x-header-set:own", "echo-v1 >x-header-set=rule"),
    ask("echo:80", "GET /add", "echo-v1 >x-header-add=rule"),
    ask("echo:80", "GET /add X-HEADER-ADD:own", "echo-v1 >x-header-add=own,rule"),
    ask("echo:80", "GET /remove x-header-remove:own", "echo-v1 >x-header-remove=-"),
    ask(
        "echo:80",
        "GET /multiple x-set-2:o x-add-2:o x-remove-2:o other:o",
        "echo-v1 >x-set-1=s1 >x-set-2=s2 >x-add-1=a1 >x-add-2=o,a2 >x-add-3=a3 >x-remove-1=- >x-remove-2=- >other=o",
    ),
];
