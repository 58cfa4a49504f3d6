use super::*;
use crate::index::Index;
use crate::model::Settings;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn taps() -> (Taps, crate::ending::End) {
    let (end, ending) = crate::ending::channel();
    let publisher = Publisher::new(Index::default(), Settings::default(), Vec::new());
    (Taps::new(publisher, Metrics::new().unwrap(), ending), end)
}

fn of(name: &str) -> Question {
    Question { of: Of::Workload(name.to_owned()), ..Question::default() }
}

/// The lines that are there.
async fn read(watching: &mut Watching) -> Vec<Line> {
    let text = watching.next().await.unwrap();
    std::str::from_utf8(&text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn watching(proxies: usize, names: &[&str]) -> Line {
    Line::Watching { proxies, names: names.iter().map(|name| (*name).to_owned()).collect() }
}

fn told(place: &mut Place) -> Vec<(bool, u64)> {
    let due = place.due().into_iter().map(|response| match response {
        Response::Tap(tap) => (true, tap.id),
        Response::TapOver(id) => (false, id),
        other => panic!("{other:?}"),
    });
    due.collect()
}

fn tapped(id: u64, paths: &[&str]) -> v1::Tapped {
    let request =
        |path: &&str| v1::TappedRequest { path: (*path).to_owned(), ..v1::TappedRequest::default() };
    v1::Tapped { id, requests: paths.iter().map(request).collect(), ..v1::Tapped::default() }
}

#[tokio::test(start_paused = true)]
async fn the_proxies_that_are_meant_are_asked_also_those_that_come_later_and_told_when_it_is_over() {
    let (taps, _end) = taps();
    let mut web = taps.enter("shop/web", WEB);
    let mut orders = taps.enter("shop/orders", "i");
    assert_eq!((told(&mut web), told(&mut orders)), (vec![], vec![]));
    let mut tap = taps.begin(&of("shop/web")).unwrap();
    assert_eq!(read(&mut tap).await, [watching(0, &[])]);
    web.wait().await;
    assert_eq!((told(&mut web), told(&mut orders)), (vec![(true, tap.id)], vec![]));
    assert_eq!(read(&mut tap).await, [watching(1, &["shop/web"])]);
    assert_eq!(told(&mut web), [], "once is enough for now");
    // Another replica comes, and the first goes.
    let mut later = taps.enter("shop/web", WEB);
    later.wait().await;
    assert_eq!(told(&mut later), [(true, tap.id)]);
    assert_eq!(read(&mut tap).await, [watching(2, &["shop/web", "shop/web"])]);
    drop(web);
    assert_eq!(read(&mut tap).await, [watching(1, &["shop/web"])]);
    // It is asked again before it would stop by itself.
    let begun = Instant::now();
    later.wait().await;
    assert!(begun.elapsed() <= LIFETIME / 2, "{:?}", begun.elapsed());
    assert_eq!(told(&mut later), [(true, tap.id)]);
    let id = tap.id;
    drop(tap);
    later.wait().await;
    assert_eq!(told(&mut later), [(false, id)]);
    assert_eq!(told(&mut later), []);
    assert_eq!(taps.0.metrics.taps.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_shown_is_read_and_only_from_who_was_asked() {
    let (taps, end) = taps();
    let mut web = taps.enter("shop/web", WEB);
    let stranger = taps.enter("bank/ledger", "i");
    let mut tap = taps.begin(&of("shop/web")).unwrap();
    read(&mut tap).await;
    told(&mut web);
    read(&mut tap).await;
    stranger.take(tapped(tap.id, &["/forged"]));
    web.take(tapped(tap.id + 1, &["/of-no-tap"]));
    web.take(tapped(tap.id, &["/a", &"x".repeat(MAX_REQUEST), "/b"]));
    web.take(v1::Tapped { id: tap.id, over_rate: 2, dropped: 1, ..v1::Tapped::default() });
    web.take(v1::Tapped { id: tap.id, refused: "no".to_owned(), ..v1::Tapped::default() });
    let lines = read(&mut tap).await;
    let request = |path: &str| {
        Line::Request(Box::new(Request {
            workload: "shop/web".to_owned(),
            direction: "outbound".to_owned(),
            path: path.to_owned(),
            ..Request::default()
        }))
    };
    let proxy = || "shop/web".to_owned();
    assert_eq!(
        lines,
        [
            request("/a"),
            request("/b"),
            Line::Missed { proxy: proxy(), over_rate: 2, dropped: 1 },
            Line::Refused { proxy: proxy(), why: "no".to_owned() },
        ]
    );
    // Nothing happens: both ends hear that the other is there.
    assert_eq!(tap.next().await.unwrap(), "\n");
    end.begin();
    assert_eq!(read(&mut tap).await, [Line::Over { why: "the control plane is ending".to_owned() }]);
    assert_eq!(tap.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_loses_lines_and_is_told_how_many() {
    let (taps, _end) = taps();
    let mut web = taps.enter("shop/web", WEB);
    let mut tap = taps.begin(&Question::default()).unwrap();
    read(&mut tap).await;
    told(&mut web);
    for _ in 0..50 {
        web.take(tapped(tap.id, &["/"; 30]));
    }
    let mut shown = 0;
    let mut unread = 0;
    while shown + unread < 1500 {
        for line in read(&mut tap).await {
            match line {
                Line::Request(_) => shown += 1,
                Line::Unread { lines } => unread += lines,
                _ => {}
            }
        }
    }
    assert_eq!((shown, unread), (ROOM as u64, 1500 - ROOM as u64));
    assert_eq!(taps.0.metrics.tap_lines_dropped.get(), 1500 - ROOM as u64);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_named_and_taps_are_bounded() {
    let (taps, _end) = taps();
    let error = |question: &Question| taps.begin(question).err().map(|error| error.to_string());
    assert_eq!(
        error(&of("shop/web")).unwrap(),
        "the control plane knows no workload shop/web; it knows none"
    );
    let _web = taps.enter("shop/web", WEB);
    assert_eq!(
        error(&of("shop/wbe")).unwrap(),
        "the control plane knows no workload shop/wbe; did you mean shop/web?"
    );
    let namespace = |name: &str| Question { of: Of::Namespace(name.to_owned()), ..Question::default() };
    assert_eq!(error(&namespace("shop")), None);
    assert_eq!(
        error(&namespace("elsewhere")).unwrap(),
        "the control plane knows no namespace elsewhere; there are shop"
    );
    let service = Question { service: Some("shop/orders:80".to_owned()), ..Question::default() };
    assert!(error(&service).unwrap().starts_with("the control plane knows no Service shop/orders;"));
    let running: Vec<Watching> = (0..MAX_TAPS).map(|_| taps.begin(&Question::default()).unwrap()).collect();
    assert_eq!(error(&Question::default()).unwrap(), "8 taps run already: end one first");
    drop(running);
    assert_eq!(error(&Question::default()), None);
}

#[tokio::test]
async fn a_peer_is_a_spiffe_id_or_whoever_has_the_name() {
    let (taps, _end) = taps();
    let _web = taps.enter("shop/web", "spiffe://cluster.local/ns/shop/sa/front");
    let asked = |peer: &str| {
        let tap = taps.begin(&Question { peer: Some(peer.to_owned()), ..Question::default() }).unwrap();
        taps.0.state.lock().running[&tap.id].asked.filter.clone().unwrap().peers
    };
    assert_eq!(asked(WEB), [WEB]);
    assert_eq!(asked("shop/web"), ["spiffe://cluster.local/ns/shop/sa/front", WEB]);
    assert_eq!(
        asked("shop/orders"),
        ["spiffe://cluster.local/ns/shop/sa/orders"],
        "a service account, for want of a workload"
    );
}
