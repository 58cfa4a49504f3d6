use super::*;

const NOW: u64 = 1_700_000_000_000;

fn key() -> SessionKey {
    SessionKey::new(&[7; 32]).unwrap()
}

fn session(place: TokenPlace) -> Session {
    Session {
        place,
        scope: "HTTPRoute/default/orders/0".into(),
        absolute_timeout: None,
        idle_timeout: None,
        backends: Box::default(),
    }
}

fn cookie(permanent: bool) -> Session {
    session(TokenPlace::Cookie { name: "id".into(), permanent })
}

fn token(began: u64, seen: u64) -> Token {
    Token { backend: 1, address: "10.0.0.1:80".parse().unwrap(), began, seen }
}

fn sealed(session: &Session) -> String {
    key().seal(&session.scope, &token(NOW, NOW)).unwrap()
}

fn fields(name: &HeaderName, values: &[&str]) -> HeaderMap {
    values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
}

fn values(fields: &HeaderMap, name: &HeaderName) -> Vec<String> {
    fields.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[test]
fn only_its_own_cookie_is_taken_out_of_a_request() {
    let session = cookie(false);
    let good = sealed(&session);
    let other = key().seal("another rule", &token(NOW, NOW)).unwrap();
    let found = Presented::Token(token(NOW, NOW));
    let cases: &[(&[&str], Presented, &[&str])] = &[
        (&[], Presented::Nothing, &[]),
        (&["a=1; b=2"], Presented::Nothing, &["a=1; b=2"]),
        (&["xid=1; idx=2; ID=3; id"], Presented::Nothing, &["xid=1; idx=2; ID=3; id"]),
        (&["id=GOOD"], found, &[]),
        (&["a=1;id=GOOD ;  b=\"2\""], found, &["a=1; b=\"2\""]),
        (&["a=1", "id=GOOD", "b=2"], found, &["a=1", "b=2"]),
        // The application's own of that name, and another path's.
        (&["id=mine; id=OTHER; id=GOOD"], found, &["id=mine; id=OTHER"]),
        (&["id=GOOD; id=GOOD"], found, &[]),
        (&["id=OTHER"], Presented::Invalid, &["id=OTHER"]),
        (&["id="], Presented::Invalid, &["id="]),
        (&["id=\"GOOD\""], Presented::Invalid, &["id=\"GOOD\""]),
        // Who sends many is not worth the work.
        (&["id=1; id=2; id=3; id=4; id=GOOD"], Presented::Invalid, &["id=1; id=2; id=3; id=4; id=GOOD"]),
    ];
    let named = |text: &&str| text.replace("GOOD", &good).replace("OTHER", &other);
    for (sent, presented, left) in cases {
        let sent: Vec<String> = sent.iter().map(named).collect();
        let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
        let mut fields = fields(&header::COOKIE, &sent);
        assert_eq!(session.take(&key(), &mut fields), *presented, "{sent:?}");
        assert_eq!(values(&fields, &header::COOKIE), left.iter().map(named).collect::<Vec<_>>(), "{sent:?}");
    }
}

#[test]
fn only_its_own_value_of_a_header_is_taken_out() {
    let name = HeaderName::from_static("x-session");
    let session = session(TokenPlace::Header(name.clone()));
    let good = sealed(&session);
    let mut sent = fields(&name, &["mine", &good]);
    assert_eq!(session.take(&key(), &mut sent), Presented::Token(token(NOW, NOW)));
    assert_eq!(values(&sent, &name), ["mine"]);
    assert_eq!(session.take(&key(), &mut sent), Presented::Invalid);
    assert_eq!(session.take(&key(), &mut HeaderMap::new()), Presented::Nothing);
    assert!(!session.put(&key(), &token(NOW, NOW), "/", NOW, &mut sent), "the application's own stays");
    let mut answer = HeaderMap::new();
    assert!(session.put(&key(), &token(NOW, NOW), "/", NOW, &mut answer));
    assert_eq!(values(&answer, &name), [good]);
}

#[test]
fn a_session_ends_by_whichever_timeout_comes_first_and_clocks_may_differ() {
    let timeouts = |absolute: Option<u64>, idle: Option<u64>| Session {
        absolute_timeout: absolute.map(Duration::from_millis),
        idle_timeout: idle.map(Duration::from_millis),
        ..cookie(false)
    };
    let over = |session: &Session, began, seen| session.is_over(&token(NOW - began, NOW - seen), NOW);
    assert!(!over(&timeouts(None, None), NOW, NOW));
    let absolute = timeouts(Some(1000), None);
    assert_eq!([over(&absolute, 999, NOW), over(&absolute, 1000, 0)], [false, true]);
    let idle = timeouts(None, Some(10));
    assert_eq!([over(&idle, NOW, 9), over(&idle, 10, 10)], [false, true]);
    let both = timeouts(Some(1000), Some(10));
    assert_eq!([over(&both, 999, 9), over(&both, 1000, 0), over(&both, 20, 20)], [false, true, true]);
    assert!(!both.is_over(&token(NOW + 5000, NOW + 5000), NOW), "another proxy's clock is ahead");
    assert!(both.is_over(&token(0, 0), u64::MAX));
}

#[test]
fn a_cookie_is_for_its_path_and_lasts_as_it_is_said() {
    let put = |session: &Session, path: &str, began: u64| {
        let mut fields = fields(&header::SET_COOKIE, &["other=1", "idx=2"]);
        assert!(session.put(&key(), &token(began, NOW), path, NOW, &mut fields));
        let set = values(&fields, &header::SET_COOKIE);
        assert_eq!(set[..2], ["other=1", "idx=2"]);
        let (pair, attributes) = set[2].split_once("; ").unwrap();
        assert!(pair.starts_with("id="), "{pair}");
        attributes.to_owned()
    };
    let until_the_client_ends = Session { absolute_timeout: Some(Duration::from_secs(60)), ..cookie(false) };
    assert_eq!(put(&until_the_client_ends, "/a/b", NOW), "Path=/a/b; HttpOnly; SameSite=Lax");
    let permanent = Session { absolute_timeout: Some(Duration::from_secs(60)), ..cookie(true) };
    assert_eq!(put(&permanent, "", NOW), "Path=/; HttpOnly; SameSite=Lax; Max-Age=60");
    assert_eq!(put(&permanent, "/", NOW - 1500), "Path=/; HttpOnly; SameSite=Lax; Max-Age=59");
    assert_eq!(put(&permanent, "/", NOW - 70_000), "Path=/; HttpOnly; SameSite=Lax; Max-Age=0");
    for (path, expected) in
        [("/a;b", "/"), ("/a/b;c/d", "/a"), ("/a b", "/"), ("/ä", "/"), ("*", "/"), ("/a,b", "/a,b")]
    {
        assert_eq!(cookie_path(path), expected);
    }

    let mut own = fields(&header::SET_COOKIE, &["id=mine; Path=/"]);
    assert!(!cookie(false).put(&key(), &token(NOW, NOW), "/", NOW, &mut own));
    assert_eq!(values(&own, &header::SET_COOKIE), ["id=mine; Path=/"]);
}
