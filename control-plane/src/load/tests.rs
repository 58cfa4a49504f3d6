use super::*;

fn row(service: &str, requests: u64) -> v1::LoadRow {
    let (latency_buckets, latency_counts) = (vec![20], vec![requests]);
    v1::LoadRow {
        service: service.to_owned(),
        requests,
        open_connections: requests,
        latency_buckets,
        latency_counts,
        ..v1::LoadRow::default()
    }
}

fn load(rows: Vec<v1::LoadRow>) -> v1::Load {
    v1::Load { milliseconds: 5000, rows, untold: Vec::new(), is_last: false }
}

fn model() -> Model {
    Model::build(&crate::index::Index::default(), crate::model::Settings::default())
}

#[test]
fn reports_add_up_for_a_minute_and_a_proxy_is_forgotten_after_its_stream() {
    let (loads, start) = (Loads::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let place = loads.enter("shop/web", "spiffe://a/ns/shop/sa/web", start);
    let seen = loads.seen(&model(), start);
    assert_eq!((seen.proxies.len(), seen.proxies[0].has_reported), (1, false), "{seen}");
    place.take(load(vec![row("shop/a:80", 10), row("shop/b:80", 1)]), at(5));
    place.take(load(vec![row("shop/a:80", 20)]), at(10));
    let seen = loads.seen(&model(), at(10));
    let proxy = &seen.proxies[0];
    assert_eq!((proxy.connected, proxy.has_reported, proxy.is_cut), (1, true, false));
    let said: Vec<_> =
        proxy.rows.iter().map(|row| (row.requests, row.open_connections, row.requests_per_second)).collect();
    assert_eq!(said, [(30, 20, 3.0), (1, 0, 0.1)], "connections are those of the last report");
    assert_eq!(proxy.rows[0].latencies, [(20, 30)]);
    assert_eq!(serde_json::from_str::<Seen>(&seen.to_string()).unwrap(), seen);
    let seen = loads.seen(&model(), at(66));
    assert_eq!(seen.proxies[0].rows.len(), 1, "the first report is too old: {seen}");
    drop(place);
    let seen = loads.seen(&model(), at(66));
    let (proxy, row) = (&seen.proxies[0], &seen.proxies[0].rows[0]);
    assert_eq!((proxy.connected, row.open_connections, row.requests_per_second), (0, 0, 0.0), "{seen}");
    assert_eq!(row.requests, 20, "what it had carried is known for a while");
    assert!(loads.seen(&model(), at(1000)).proxies.is_empty());
    assert_eq!(loads.0.lock().bytes, 0);
}

#[test]
fn replicas_add_up_and_who_comes_back_is_not_counted_twice() {
    let (loads, start) = (Loads::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let enter = |at| loads.enter("shop/web", "spiffe://a/ns/shop/sa/web", at);
    let (one, other) = (enter(start), enter(start));
    one.take(load(vec![row("shop/a:80", 10)]), at(5));
    other.take(load(vec![row("shop/a:80", 30)]), at(5));
    let seen = loads.seen(&model(), at(5));
    assert_eq!(seen.proxies.len(), 1, "{seen}");
    let (proxy, said) = (&seen.proxies[0], &seen.proxies[0].rows[0]);
    assert_eq!((proxy.connected, proxy.most_connected), (2, 2));
    assert_eq!((said.requests, said.open_connections, said.requests_per_second), (40, 40, 8.0));
    // Its stream is lost, and opened again.
    drop(one);
    let gone = loads.seen(&model(), at(6)).proxies.remove(0);
    assert_eq!((gone.connected, gone.most_connected), (1, 2));
    let one = enter(Instant::now());
    one.take(load(vec![row("shop/a:80", 10)]), at(10));
    let seen = loads.seen(&model(), at(10));
    let (proxy, said) = (&seen.proxies[0], &seen.proxies[0].rows[0]);
    assert_eq!((proxy.connected, proxy.most_connected), (2, 2), "{seen}");
    assert_eq!((said.requests, said.requests_per_second), (50, 8.0));
    // Of another identity by the same name are others.
    let _other = loads.enter("shop/web", "spiffe://a/ns/shop/sa/other", at(10));
    assert_eq!(loads.seen(&model(), at(10)).proxies.len(), 2);
}

#[test]
fn the_last_report_of_a_proxy_may_come_soon_and_what_it_had_carried_is_known_for_a_minute() {
    let (loads, start) = (Loads::default(), Instant::now());
    let at = |millis| start + Duration::from_millis(millis);
    let place = loads.enter("shop/web", "i", start);
    let last = |requests| v1::Load { is_last: true, ..load(vec![row("shop/a:80", requests)]) };
    place.take(load(vec![row("shop/a:80", 10)]), at(5000));
    place.take(last(5), at(5100));
    let requests =
        |at| loads.seen(&model(), at).proxies.first().map(|proxy| (proxy.rows[0].requests, proxy.is_cut));
    assert_eq!(requests(at(5100)), Some((15, false)));
    // Nothing can come after that.
    place.take(last(1), at(5200));
    place.take(load(vec![row("shop/a:80", 1)]), at(9000));
    assert_eq!(requests(at(9000)), Some((15, true)));
    drop(place);
    assert_eq!(requests(at(64_000)).map(|(requests, _)| requests), Some(15));
    assert_eq!(requests(at(65_050)).map(|(requests, _)| requests), Some(5), "of the last minute");
    assert_eq!(requests(at(65_200)), None);
}

#[test]
fn what_no_proxy_of_ours_says_is_not_taken() {
    let (loads, start) = (Loads::default(), Instant::now());
    let place = loads.enter("shop/web", "i", start);
    let mut at = start;
    let mut say = |rows: Vec<v1::LoadRow>, untold: &[&str]| {
        at += Duration::from_secs(5);
        let untold = untold.iter().map(|name| (*name).to_owned()).collect();
        place.take(v1::Load { untold, ..load(rows) }, at);
        loads.seen(&model(), at).proxies.remove(0)
    };
    let fine = say(vec![row("shop/a:80", 1)], &["service", "\x1b[2J"]);
    assert_eq!((fine.rows.len(), fine.is_cut), (1, false));
    assert_eq!(fine.untold.into_iter().collect::<Vec<_>>(), ["service"]);
    let strange = [
        row("shop/\x1b[2J:80", 1),
        row("shop/\n:80", 1),
        row("shop/\u{202e}:80", 1),
        row(&"x".repeat(MAX_TEXT + 1), 1),
        v1::LoadRow { latency_counts: Vec::new(), ..row("shop/b:80", 1) },
        v1::LoadRow { latency_buckets: vec![1; 78], latency_counts: vec![1; 78], ..row("shop/c:80", 1) },
    ];
    for row in strange {
        let seen = say(vec![row], &[]);
        assert_eq!((seen.rows.len(), seen.is_cut), (1, true), "{seen:?}");
    }
    let most = v1::LoadRow { bytes_sent: u64::MAX, ..row("shop/a:80", u64::MAX) };
    say(vec![most.clone()], &[]);
    let seen = say(vec![most], &[]);
    assert_eq!((seen.rows[0].requests, seen.rows[0].bytes_sent), (u64::MAX, u64::MAX));
}

#[test]
fn what_is_too_much_is_not_kept_and_is_said_to_be_missing() {
    let (loads, start) = (Loads::default(), Instant::now());
    let at = |millis| start + Duration::from_millis(millis);
    let place = loads.enter("shop/web", "i", start);
    place.take(load((0..1000).map(|i| row(&format!("shop/s{i}:80"), 1)).collect()), at(1000));
    let seen = loads.seen(&model(), at(1000));
    assert_eq!((seen.proxies[0].rows.len(), seen.proxies[0].is_cut), (MAX_ROWS, true));
    place.take(load(vec![row("shop/a:80", 1)]), at(7000));
    assert!(!loads.seen(&model(), at(7000)).proxies[0].is_cut, "the last report was whole");
    place.take(load(vec![row("shop/a:80", 7)]), at(7100));
    let seen = loads.seen(&model(), at(7100));
    let of_a = seen.proxies[0].rows.iter().find(|row| row.labels.service == "shop/a:80").unwrap();
    assert_eq!((of_a.requests, seen.proxies[0].is_cut), (1, true), "too soon after the last");
}

/// As large as a report can be that is taken.
fn largest(report: u64) -> v1::Load {
    let text = |kind: &str, row: u64| format!("{kind}{report}-{row}-{}", "x".repeat(480));
    let rows = (0..MAX_ROWS as u64).map(|at| v1::LoadRow {
        peer: text("peer", at),
        service: text("service", at),
        route: text("route", at),
        backend: text("backend", at),
        latency_buckets: (0..77).collect(),
        latency_counts: vec![1; 77],
        ..row("", 1)
    });
    load(rows.collect())
}

#[test]
fn of_one_proxy_only_so_much_is_kept_and_rates_stay_right() {
    let (loads, start) = (Loads::default(), Instant::now());
    let place = loads.enter("shop/web", "i", start);
    for report in 1..=100 {
        let now = start + SOONEST * u32::try_from(report).unwrap();
        place.take(largest(report), now);
        let kept = loads.0.lock();
        assert!(kept.bytes <= MAX_OF_STREAM, "{}", kept.bytes);
        assert!(kept.bytes > MAX_OF_STREAM / 3 || report < 3, "{}", kept.bytes);
        assert_eq!(kept.bytes, kept.reporting.values().map(|one| one.bytes).sum::<usize>());
    }
    let seen = loads.seen(&model(), start + SOONEST * 100);
    let rate: f64 = seen.proxies[0].rows.iter().map(|row| row.requests_per_second).sum();
    assert!((rate - 256.0 / 5.0).abs() < 0.01, "{rate}");
    drop(place);
    loads.seen(&model(), start + Duration::from_secs(600));
    assert_eq!(loads.0.lock().bytes, 0);
}

#[test]
fn of_all_proxies_only_so_much_is_kept_and_who_finds_no_room_is_named() {
    let (loads, start) = (Loads::default(), Instant::now());
    let places: Vec<Place> = (0..120).map(|i| loads.enter(&format!("shop/p{i}"), "i", start)).collect();
    for report in 1..=3 {
        for place in &places {
            place.take(largest(report), start + Duration::from_secs(5 * report));
        }
        assert!(loads.0.lock().bytes <= MAX_OF_ALL, "{}", loads.0.lock().bytes);
    }
    let late = loads.enter("shop/late", "i", start + Duration::from_secs(15));
    late.take(largest(1), start + Duration::from_secs(16));
    let seen = loads.seen(&model(), start + Duration::from_secs(16));
    let late = seen.proxies.iter().find(|one| one.proxy == "shop/late").unwrap();
    assert!(late.is_cut && !late.has_reported, "{late:?}");
    assert!(seen.proxies.iter().filter(|one| one.has_reported).count() > 60);
}
