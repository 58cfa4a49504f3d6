use super::*;
use crate::testing::{Rng, allocations, seeds};

fn readings(path: &str) -> Result<Vec<String>, Unclear> {
    Readings::of(path).map(|readings| readings.all().map(str::to_owned).collect())
}

#[test]
fn what_paths_are_read_as() {
    for (path, expected) in [
        ("/", &["/"][..]),
        ("*", &["*"]),
        ("", &[""]),
        ("/admin", &["/admin"]),
        ("/admin/", &["/admin/"]),
        ("/Admin", &["/Admin"]),
        ("/a.b/c..d/...", &["/a.b/c..d/..."]),
        ("/.well-known/x", &["/.well-known/x"]),
        ("/a+b@c:d=e,f!", &["/a+b@c:d=e,f!"]),
        ("/é", &["/é"]),
        // One path, spelled otherwise.
        ("/%61dmin", &["/admin"]),
        ("/%61%64%6D%69%6e", &["/admin"]),
        ("/%C3%A9", &["/é"]),
        ("/a%2Bb%40c", &["/a+b@c"]),
        ("/100%25", &["/100%"]),
        ("/a%20b", &["/a b"]),
        ("/a%3Fb%23c", &["/a?b#c"]),
        // Segments that may be left out.
        ("//admin", &["//admin", "/admin"]),
        ("///", &["///", "/"]),
        ("/a//b//", &["/a//b//", "/a/b/"]),
        ("/./admin", &["/./admin", "/admin"]),
        ("/admin/.", &["/admin/.", "/admin/"]),
        ("/a/../admin", &["/a/../admin", "/admin"]),
        ("/a/%2e%2e/admin", &["/a/../admin", "/admin"]),
        ("/a/.%2E/admin", &["/a/../admin", "/admin"]),
        ("/%2e/admin", &["/./admin", "/admin"]),
        ("/../../admin", &["/../../admin", "/admin"]),
        ("/admin/..", &["/admin/..", "/"]),
        ("/a/b/../..", &["/a/b/../..", "/"]),
        // Parameters.
        ("/admin;x=1", &["/admin;x=1", "/admin"]),
        ("/admin;", &["/admin;", "/admin"]),
        ("/admin%3Bx", &["/admin;x", "/admin"]),
        ("/a;x/b;y/c", &["/a;x/b;y/c", "/a/b/c"]),
        ("/;x/admin", &["/;x/admin", "/admin"]),
        ("//a;x", &["//a;x", "/a;x", "/a"]),
        ("/./a;x", &["/./a;x", "/a;x", "/a"]),
    ] {
        assert_eq!(
            readings(path).as_deref(),
            Ok(expected.iter().map(|&one| one.to_owned()).collect::<Vec<_>>()).as_deref(),
            "{path}"
        );
    }
}

#[test]
fn of_these_nobody_can_tell() {
    for (path, why) in [
        ("/a%2Fb", Unclear::Slash),
        ("/a%2fb", Unclear::Slash),
        ("/..%2fadmin", Unclear::Slash),
        ("/a\\b", Unclear::Slash),
        ("/a%5Cb", Unclear::Slash),
        ("/..%5c..%5cadmin", Unclear::Slash),
        ("/admin%00", Unclear::Control),
        ("/admin%00.png", Unclear::Control),
        ("/admin%0a", Unclear::Control),
        ("/ad%09min", Unclear::Control),
        ("/admin%7f", Unclear::Control),
        ("/admin%", Unclear::Encoding),
        ("/admin%6", Unclear::Encoding),
        ("/%zzadmin", Unclear::Encoding),
        ("/%u002fadmin", Unclear::Encoding),
        ("/%+1", Unclear::Encoding),
        ("/%252e%252e/admin", Unclear::Twice),
        ("/a%252fb", Unclear::Twice),
        ("/%25%36%31dmin", Unclear::Twice),
        ("/%c0%afadmin", Unclear::NotUtf8),
        ("/%e0%80%afadmin", Unclear::NotUtf8),
        ("/caf%e9", Unclear::NotUtf8),
        ("/a//../admin", Unclear::Dots),
        ("//../admin", Unclear::Dots),
        ("/a/..//admin", Unclear::Dots),
        ("/..;/admin", Unclear::Dots),
        ("/a/..;x=1/admin", Unclear::Dots),
        ("/a/.;/admin", Unclear::Dots),
        ("/a/%2e%2e;/admin", Unclear::Dots),
        ("/a/..%3b/admin", Unclear::Dots),
        ("/a;x/../admin", Unclear::Dots),
    ] {
        assert_eq!(readings(path), Err(why), "{path}");
        assert!(!why.to_string().is_empty());
    }
}

/// Allowed for sure, and denied.
fn judged(rule: &PathText, path: &str) -> (bool, bool) {
    let readings = Readings::of(path).unwrap();
    let rules = std::slice::from_ref(rule);
    (describe(rules, &readings, true), describe(rules, &readings, false))
}

#[test]
fn what_allows_describes_all_readings_and_what_denies_any() {
    let template = |text| PathText::template(text).unwrap();
    for (rule, path, allowed, denied) in [
        (PathText::exact("/admin"), "/admin", true, true),
        (PathText::exact("/admin"), "/%61dmin", true, true),
        (PathText::exact("/%61dmin"), "/admin", true, true),
        (PathText::exact("/a%20b"), "/a%20b", true, true),
        (PathText::exact("/admin"), "/Admin", false, false),
        (PathText::exact("/admin"), "/admin/", false, true),
        (PathText::exact("/admin/"), "/admin", false, true),
        (PathText::exact("/admin"), "//admin", false, true),
        (PathText::exact("/admin"), "/x/../admin", false, true),
        (PathText::exact("/admin"), "/admin;x", false, true),
        (PathText::exact("/admin"), "/admin/x", false, false),
        (PathText::exact("/admin"), "/adminx", false, false),
        (PathText::exact("/"), "/", true, true),
        (PathText::exact("/"), "*", false, false),
        (PathText::prefix("/admin/"), "/admin/x", true, true),
        (PathText::prefix("/admin/"), "/admin", false, true),
        (PathText::prefix("/admin/"), "/adminx", false, false),
        (PathText::prefix("/public/"), "/public/../admin", false, true),
        (PathText::prefix("/admin/"), "/public/../admin/x", false, true),
        (PathText::prefix("/admin/"), "/admin;v=1/x", false, true),
        (PathText::prefix("/public/"), "/public//x", true, true),
        (PathText::prefix("/"), "/x/../admin", true, true),
        (PathText::prefix("/"), "", false, true),
        (PathText::suffix("/edit"), "/a/edit", true, true),
        (PathText::suffix("/edit"), "/a/edit/", false, true),
        (PathText::suffix("/edit"), "/a/edit;x", false, true),
        (PathText::suffix(".php"), "/a/edit.php", true, true),
        (template("/users/{*}/orders"), "/users/1/orders", true, true),
        (template("/users/{*}/orders"), "/users//orders", false, false),
        (template("/users/{*}/orders"), "/users/1/2/orders", false, false),
        (template("/users/{*}/orders"), "/users/1/orders/", false, true),
        (template("/users/{*}/orders"), "/users/1/../2/orders", false, true),
        (template("/users/{*}"), "/users/", false, false),
        (template("/users/{*}"), "/users/1", true, true),
        (template("/files/{**}"), "/files", true, true),
        (template("/files/{**}"), "/files/", true, true),
        (template("/files/{**}"), "/files/a/b", true, true),
        (template("/files/{**}"), "/filesx", false, false),
        (template("/{*}/x/{**}"), "/a/x/b/c", true, true),
        (template("/{**}"), "/", true, true),
        (template("/{**}"), "/a/b", true, true),
    ] {
        assert_eq!(judged(&rule, path), (allowed, denied), "{rule} {path}");
    }
}

#[test]
fn what_is_no_template_is_refused() {
    for text in
        ["", "a/{*}", "/a/{**}/b", "/a{*}", "/{*}b", "/a/x{**}", "/{***}", "/{a}", "/a/{", "/{**}/{**}"]
    {
        assert!(PathText::template(text).is_err(), "{text}");
    }
}

#[test]
fn a_plain_path_allocates_nothing() {
    let paths = ["/", "/orders/1", "/.well-known/x", "*", ""];
    let before = allocations();
    let mut count = 0;
    for path in paths {
        count += Readings::of(path).map_or(0, |readings| readings.all().count());
    }
    assert_eq!((allocations() - before, count), (0, paths.len()));
}

/// Whatever is put in its way, the path that an application comes to by any order of what applications do is denied.
#[test]
fn no_spelling_goes_around_a_denial() {
    let deny = [PathText::exact("/admin")];
    let parts = [
        "/", "//", ".", "..", "%2e", ";", "x", "%61", "a", "dmin", "admin", "%2f", "%25", "%3b", ";p=1", "A",
    ];
    seeds(20_000, |_, mut rng: Rng| {
        let mut path = "/".to_owned();
        for _ in 0..rng.below(9) {
            let part = *rng.choose(&parts);
            path.push_str(part);
        }
        let Ok(readings) = Readings::of(&path) else { return };
        let denied = describe(&deny, &readings, false);
        for application in 0..16_u8 {
            assert!(denied || come_to(&path, application) != "/admin", "{path} as {application} reads it");
        }
    });
}

/// What an application reads that leaves out parameters (1) before or (2) after it resolves, merges slashes (4) before or (8) after it does.
fn come_to(path: &str, application: u8) -> String {
    let does = |what: u8| application & what != 0;
    let merged = |path: String| {
        let mut out = String::new();
        for character in path.chars() {
            if character != '/' || !out.ends_with('/') {
                out.push(character);
            }
        }
        out
    };
    let bare = |path: String| {
        let segments: Vec<_> = path.split('/').map(|segment| segment.split(';').next().unwrap()).collect();
        segments.join("/")
    };
    let mut path = decoded(path).unwrap().into_owned();
    if does(1) {
        path = bare(path);
    }
    if does(4) {
        path = merged(path);
    }
    // RFC 3986, section 5.2.4: empty segments count.
    let mut left: Vec<&str> = Vec::new();
    let (mut segments, mut ends_open) = (path[1..].split('/').peekable(), false);
    while let Some(segment) = segments.next() {
        ends_open = matches!(segment, "." | "..") && segments.peek().is_none();
        match segment {
            "." => {}
            ".." => drop(left.pop()),
            segment => left.push(segment),
        }
    }
    let mut path = format!("/{}{}", left.join("/"), if ends_open && !left.is_empty() { "/" } else { "" });
    if does(8) {
        path = merged(path);
    }
    if does(2) { bare(path) } else { path }
}
