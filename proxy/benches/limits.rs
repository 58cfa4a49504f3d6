//! What rate limits cost a request: `cargo bench -p tulle-proxy --bench limits`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tulle_proxy::limit::{Asking, Key, Rate, RateLimit, RateLimits};
use tulle_proxy::route::Asked;

const USER: HeaderName = HeaderName::from_static("x-user");

fn limits(keys: &[Key]) -> Option<RateLimits> {
    let rate = Rate { requests: 1_000_000_000, per: Duration::from_secs(1), burst: 1_000_000 };
    let limits = keys.iter().enumerate().map(|(i, key)| RateLimit {
        name: format!("shop/web/{i}").into(),
        headers: Vec::new(),
        key: key.clone(),
        rate,
        overrides: Vec::new(),
        ports: Vec::new(),
        dry_run: false,
    });
    RateLimits::new(&limits.collect::<Vec<_>>(), None, Instant::now())
}

fn benches(criterion: &mut Criterion) {
    let mut headers = HeaderMap::new();
    headers.insert(USER, HeaderValue::from_static("somebody"));
    let asked = Asked { method: &Method::GET, authority: "web", path: "/", query: "", headers: &headers };
    let asking = Asking { asked, identity: None, port: 80 };
    for (name, keys) in [
        ("total", &[Key::All] as &[Key]),
        ("by header", &[Key::Header(USER)]),
        ("three of them", &[Key::All, Key::Header(USER), Key::Identity]),
    ] {
        let Some(limits) = limits(keys) else { return };
        criterion.bench_function(&format!("rate limits, {name}"), |bench| {
            bench.iter(|| limits.take(black_box(&asking), Instant::now(), |_, _| {}).is_ok());
        });
    }
}

criterion_group!(group, benches);
criterion_main!(group);
