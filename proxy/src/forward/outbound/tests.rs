use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::net::TcpListener;

use super::super::tests;
use super::*;
use crate::accept::Destination;

fn of<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
    size_of::<F>()
}

/// It is copied when it is made, and touched all over while it runs.
#[test]
fn a_requests_future_is_small() {
    let size = of(Connection::request);
    assert!(size <= 8192, "{size} bytes");
}

/// A server of HTTP/2 that answers with what it is sent, or refuses all; how much it was asked for.
async fn server(refuses: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((mut request, mut reply))) = connection.accept().await {
                    seen.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(async move {
                        // By then the body is on its way.
                        let data = request.body_mut().data().await;
                        if refuses {
                            return reply.send_reset(h2::Reason::REFUSED_STREAM);
                        }
                        let mut answer = reply.send_response(Response::new(()), false).unwrap();
                        answer.send_data(data.unwrap().unwrap(), true).unwrap();
                    });
                }
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_post_that_a_server_refuses_unread_goes_to_another_with_its_body() {
    let ((refusing, refused), (other, answered)) = (server(true).await, server(false).await);
    let worker = tests::lone_worker("web");
    tests::knows(&worker, "shop", &[refusing, other]);
    let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = tokio::net::TcpStream::connect(near.local_addr().unwrap()).await.unwrap();
    let (stream, address) = near.accept().await.unwrap();
    let destination = Destination::Service { service: ObjectName::new("default", "shop"), port: 80 };
    tokio::spawn(async move { serve(&worker, Accepted { stream, client: address, destination }).await });
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let mut sent = 0;
    while refused.load(Ordering::Relaxed) == 0 || sent < 10 {
        let request = Request::post("http://shop/").version(http::Version::HTTP_2).body(()).unwrap();
        let (response, mut upload) = requests.send_request(request, false).unwrap();
        upload.send_data(Bytes::from_static(b"hello"), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200, "{:?}", response.headers());
        assert_eq!(response.into_body().data().await.unwrap().unwrap(), "hello");
        sent += 1;
        assert_eq!(answered.load(Ordering::Relaxed), sent, "none is served twice");
        assert!(sent < 1000, "it is never asked");
    }
}
