//! Bodies of requests that are to be had again, of which something is there already when that is said.

use bytes::Bytes;
use h2::SendStream;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt as _;

use super::*;
use crate::wire::Spare;

const LIMIT: u64 = 16 * 1024;

/// What a client sends of a body.
#[derive(Clone, Copy)]
enum Sent {
    Data(usize),
    Trailers,
    /// Nothing yet.
    More,
}

/// The body of a request of which so much has come, and what its client sends more with.
async fn body(sent: &[Sent], come: usize) -> (Body, SendStream<Bytes>) {
    let (client, server) = pair().await;
    let (sender, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let head = Request::post("http://orders/").version(http::Version::HTTP_2).body(()).unwrap();
    let mut sender = sender.ready().await.unwrap();
    let (response, mut stream) = sender.send_request(head, false).unwrap();
    let last = sent.len() - 1;
    for (i, part) in sent.iter().enumerate() {
        match part {
            Sent::Data(length) => stream.send_data(Bytes::from(vec![b'x'; *length]), i == last).unwrap(),
            Sent::Trailers => {
                let etag = (header::ETAG, HeaderValue::from_static("a"));
                stream.send_trailers(HeaderMap::from_iter([etag])).unwrap();
            }
            Sent::More => {}
        }
    }
    let mut server = h2::server::handshake(server).await.unwrap();
    let (request, reply) = server.accept().await.unwrap().unwrap();
    tokio::spawn(async move {
        let _asked = (sender, response, reply);
        server.accept().await.map(drop)
    });
    let (head, mut receive) = request.into_parts();
    while receive.flow_control().used_capacity() < come {
        tokio::task::yield_now().await;
    }
    (Body::http2(Incoming::of_request(receive, &head.headers)), stream)
}

/// Its data, whether trailers came, and whether it came to its end.
async fn read(mut body: Body) -> (usize, bool, bool) {
    let (mut data, mut trailers) = (0, false);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return (data, trailers, false) };
        data += frame.data_ref().map_or(0, Bytes::len);
        trailers |= frame.is_trailers();
    }
    (data, trailers, true)
}

#[tokio::test]
async fn a_body_of_which_something_is_here_is_read_and_had_again_whole() {
    use Sent::{Data, Trailers};
    let cases: &[&[Sent]] = &[
        &[Data(5)],
        &[Data(5), Data(6)],
        &[Data(5), Trailers],
        &[Trailers],
        &[Data(5), Data(16_000)],
        &[Data(10_000), Data(10_000)],
        &[Data(10_000), Data(10_000), Trailers],
    ];
    for (i, sent) in cases.iter().enumerate() {
        let data: usize = sent.iter().map(|part| if let Data(length) = part { *length } else { 0 }).sum();
        let whole = (data, matches!(sent.last(), Some(Trailers)), true);
        let first = if let Data(length) = sent[0] { length } else { 0 };
        for (come, limit) in [(0, LIMIT), (first, LIMIT), (data, LIMIT), (0, 3), (first, 3)] {
            let (mut body, _stream) = body(sent, come).await;
            let spare = body.keep(limit);
            assert_eq!(read(body).await, whole, "case {i}, {come}, {limit}");
            let again = spare.body();
            assert_eq!(again.is_some(), data as u64 <= limit, "case {i}, {come}, {limit}");
            if let Some(again) = again {
                assert_eq!(read(again).await, whole, "case {i}, {come}, {limit}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_is_all_here_is_had_again_without_a_reader() {
    let (mut body, _stream) = body(&[Sent::Data(5)], 5).await;
    let spare = body.keep(LIMIT);
    assert!(matches!(spare, Spare::Full(_)), "{spare:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_after_its_beginning_is_not_had_again() {
    let (mut body, mut stream) = body(&[Sent::Data(5), Sent::More], 5).await;
    let spare = body.keep(LIMIT);
    stream.send_reset(h2::Reason::CANCEL);
    assert_eq!(read(body).await, (5, false, false));
    assert!(spare.body().is_none());
}
