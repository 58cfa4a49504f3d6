use http_body_util::BodyExt as _;
use tulle_api::ext_authz::{HeaderValue as Told, HttpStatus, Status};

use super::*;
use crate::policy::{ExternalSpec, Externals, external_example};

fn option(key: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
    let header = Told { key: key.to_owned(), value: value.to_owned(), raw_value: Default::default() };
    HeaderValueOption { header: Some(header), append, append_action }
}

fn set(key: &str, value: &str) -> HeaderValueOption {
    option(key, value, None, 0)
}

fn answer(code: Option<i32>, http_response: Option<HttpResponse>) -> CheckResponse {
    let status = code.map(|code| Status { code, message: "because".to_owned() });
    CheckResponse { status, http_response }
}

fn read(answer: CheckResponse) -> Result<Decision, String> {
    let spec = ExternalSpec { allowed_headers: vec![http::header::COOKIE], ..external_example("shop/opa") };
    let externals = Externals::new(&[spec], None).unwrap();
    let headers = HeaderMap::new();
    let asked = crate::route::Asked {
        method: &http::Method::GET,
        authority: "",
        path: "/",
        query: "",
        headers: &headers,
    };
    Decision::read(answer, &externals.about(80, &asked)[0])
}

fn allowed(ok: OkHttpResponse) -> Arc<Changes> {
    match read(answer(Some(0), Some(HttpResponse::OkResponse(ok)))) {
        Ok(Decision::Allowed(changes)) => changes,
        other => panic!("{other:?}"),
    }
}

fn request(target: &str, fields: &[(&str, &str)]) -> Request<Body> {
    let request = fields.iter().fold(Request::get(target), |it, (name, value)| it.header(*name, *value));
    request.body(Body::empty()).unwrap()
}

fn values(fields: &HeaderMap, name: &str) -> Vec<String> {
    fields.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_yes_a_no_and_what_is_neither_are_told_apart() {
    let (ok, denied) = (
        || Some(HttpResponse::OkResponse(OkHttpResponse::default())),
        || Some(HttpResponse::DeniedResponse(DeniedHttpResponse::default())),
    );
    let error = || Some(HttpResponse::ErrorResponse(DeniedHttpResponse::default()));
    for (code, http, says) in [
        (Some(0), None, Some(true)),
        (Some(0), ok(), Some(true)),
        (None, ok(), Some(true)),
        (Some(7), None, Some(false)),
        (Some(16), denied(), Some(false)),
        (Some(7), ok(), Some(false)),
        (None, None, None),
        (Some(0), denied(), None),
        (None, denied(), None),
        (Some(14), error(), None),
        (Some(0), error(), None),
    ] {
        let said = match read(answer(code, http.clone())) {
            Ok(Decision::Allowed(_)) => Some(true),
            Ok(Decision::Denied { message, .. }) => {
                assert_eq!(message, "because");
                Some(false)
            }
            Err(_) => None,
        };
        assert_eq!(said, says, "{code:?} {http:?}");
    }
}

#[test]
fn headers_are_changed_as_is_said_and_put_in_the_place_of_the_clients_where_nothing_is() {
    let append = HeaderAppendAction::AppendIfExistsOrAdd as i32;
    let absent = HeaderAppendAction::AddIfAbsent as i32;
    let overwrite = HeaderAppendAction::OverwriteIfExistsOrAdd as i32;
    let present = HeaderAppendAction::OverwriteIfExists as i32;
    for (append, action, there, not_there) in [
        (None, append, &["new"] as &[&str], &["new"] as &[&str]),
        (None, overwrite, &["new"], &["new"]),
        (None, absent, &["old"], &["new"]),
        (None, present, &["new"], &[]),
        (Some(true), append, &["old", "new"], &["new"]),
        (Some(true), absent, &["old", "new"], &["new"]),
        (Some(false), append, &["new"], &["new"]),
    ] {
        let changes = allowed(OkHttpResponse {
            headers: vec![option("x-user", "new", append, action)],
            ..OkHttpResponse::default()
        });
        for (fields, expected) in [(&[("x-user", "old")] as &[_], there), (&[], not_there)] {
            let mut request = request("/", fields);
            changes.change(&mut request).unwrap();
            assert_eq!(values(request.headers(), "x-user"), expected, "{append:?} {action} {fields:?}");
        }
    }
    let present = allowed(OkHttpResponse {
        headers: vec![option("x-user-id", "new", None, present)],
        ..OkHttpResponse::default()
    });
    let mut asked = request("/", &[("x-user-id", "old"), ("x_user_id", "old")]);
    present.change(&mut asked).unwrap();
    assert_eq!(values(asked.headers(), "x-user-id"), ["new"]);
    assert!(!asked.headers().contains_key("x_user_id"), "some servers take it for the one that is replaced");
    let twice = allowed(OkHttpResponse {
        headers: vec![set("x-role", "a"), set("X-Role", "b")],
        ..OkHttpResponse::default()
    });
    let mut request = request("/", &[("x-role", "admin"), ("x-role", "root")]);
    twice.change(&mut request).unwrap();
    assert_eq!(values(request.headers(), "x-role"), ["a", "b"]);
}

#[tokio::test]
async fn a_client_keeps_nothing_under_names_that_servers_take_for_the_same_nor_in_trailers() {
    let changes = allowed(OkHttpResponse {
        headers: vec![set("x-user-id", "ann")],
        headers_to_remove: vec!["x-secret-id".to_owned()],
        ..OkHttpResponse::default()
    });
    let claimed = [("x_user_id", "eve"), ("x-user_id", "eve"), ("x_secret-id", "eve"), ("x_other_id", "eve")];
    let mut request = request("/", &claimed);
    let trailers = request.headers().clone();
    *request.body_mut() = Body::trailers(trailers);
    changes.change(&mut request).unwrap();
    let mut left: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["x-user-id", "x_other_id"]);
    let passed = request.into_body().collect().await.unwrap();
    let left: Vec<_> = passed.trailers().unwrap().keys().map(HeaderName::as_str).collect();
    assert_eq!(left, ["x_other_id"]);
}

#[test]
fn what_an_authorizer_may_not_change_stays() {
    let changes = allowed(OkHttpResponse {
        headers: vec![
            set("x-tulle-error", "a"),
            set("host", "elsewhere"),
            set("content-length", "0"),
            set("connection", "close"),
            set("accept", "nothing"),
            set("authorization", "Basic new"),
            set("cookie", "a=1"),
        ],
        headers_to_remove: ["host", ":path", "accept", "x-secret", "content-length"]
            .map(str::to_owned)
            .into(),
        response_headers_to_add: vec![
            set("x-tulle-error", "a"),
            set("set-cookie", "a=1"),
            set("server", "opa"),
        ],
        ..OkHttpResponse::default()
    });
    let mut request = request(
        "/",
        &[
            ("host", "orders"),
            ("accept", "*/*"),
            ("content-length", "3"),
            ("x-secret", "1"),
            ("authorization", "old"),
        ],
    );
    changes.change(&mut request).unwrap();
    let mut left: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    left.sort_unstable();
    assert_eq!(
        left,
        ["accept: */*", "authorization: Basic new", "content-length: 3", "cookie: a=1", "host: orders"]
    );
    let mut response =
        Response::builder().header("server", "app").header("set-cookie", "b=2").body(Body::empty());
    let response = response.as_mut().unwrap();
    changes.answer(response);
    assert!(!response.headers().contains_key("x-tulle-error"));
    assert_eq!(values(response.headers(), "server"), ["opa"]);
    assert_eq!(values(response.headers(), "set-cookie"), ["a=1"]);
    let mut refused =
        Response::builder().header(headers::ERROR, "connect_failed").body(Body::empty()).unwrap();
    changes.answer(&mut refused);
    assert!(!refused.headers().contains_key("set-cookie"));
}

#[test]
fn what_cannot_be_read_of_a_yes_makes_it_none_and_of_a_no_is_left_out() {
    let broken =
        [set("a b", "c"), set("x-a", "b\r\nc: d"), option("x-a", "b", None, 9), HeaderValueOption::default()];
    for one in broken {
        for ok in [
            OkHttpResponse { headers: vec![one.clone()], ..OkHttpResponse::default() },
            OkHttpResponse { response_headers_to_add: vec![one.clone()], ..OkHttpResponse::default() },
        ] {
            assert!(read(answer(Some(0), Some(HttpResponse::OkResponse(ok)))).is_err(), "{one:?}");
        }
        let denied =
            DeniedHttpResponse { headers: vec![one, set("x-why", "so")], ..DeniedHttpResponse::default() };
        let Ok(Decision::Denied { reply, .. }) =
            read(answer(Some(7), Some(HttpResponse::DeniedResponse(denied))))
        else {
            panic!("it is a no");
        };
        assert_eq!(reply.headers.len(), 1);
    }
}

#[test]
fn a_no_has_a_status_that_an_answer_can_have() {
    for (code, status) in
        [(0, 403), (401, 401), (302, 302), (200, 200), (101, 403), (99, 403), (600, 403), (-1, 403)]
    {
        let headers = ["location", "x-tulle-error", "content-length", "transfer-encoding"]
            .map(|name| set(name, "/login"));
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code }),
            headers: headers.into(),
            body: "no".to_owned(),
        };
        let Ok(Decision::Denied { reply, .. }) =
            read(answer(Some(16), Some(HttpResponse::DeniedResponse(denied))))
        else {
            panic!("it is a no");
        };
        assert_eq!((reply.status.as_u16(), &*reply.body), (status, "no"), "{code}");
        let names: Vec<_> = reply.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["location"]);
    }
}

#[test]
fn query_parameters_are_set_and_removed_by_what_they_mean() {
    let parameter = |key: &str, value: &str| QueryParameter { key: key.to_owned(), value: value.to_owned() };
    let changes = allowed(OkHttpResponse {
        query_parameters_to_set: vec![parameter("user", "a b&c")],
        query_parameters_to_remove: vec!["token".to_owned()],
        ..OkHttpResponse::default()
    });
    for (target, expected) in [
        ("/p?a=1&us%65r=eve&token=x&tok%65n=y&token&b=%2F", "/p?a=1&b=%2F&user=a%20b%26c"),
        ("/p", "/p?user=a%20b%26c"),
        ("http://orders:80/p?token=1", "http://orders:80/p?user=a%20b%26c"),
    ] {
        let mut request = request(target, &[]);
        changes.change(&mut request).unwrap();
        assert_eq!(request.uri().to_string(), expected);
    }
    let only = allowed(OkHttpResponse {
        query_parameters_to_remove: vec!["token".to_owned()],
        ..OkHttpResponse::default()
    });
    let mut request = request("/p?token=1", &[]);
    only.change(&mut request).unwrap();
    assert_eq!(request.uri().to_string(), "/p");
    let long = allowed(OkHttpResponse {
        query_parameters_to_set: vec![parameter("a", &"x".repeat(70_000))],
        ..OkHttpResponse::default()
    });
    assert!(long.change(&mut request).is_err());
}
