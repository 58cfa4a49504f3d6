//! A server of gRPC that ends its connections by age, and who watches it (R14).

use std::net::TcpListener;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::app::App;
use crate::load::Dial;
use crate::within;

/// A message of gRPC, as it is framed.
const MESSAGE: &[u8] = b"\0\0\0\0\x02ok";

/// MAX_CONNECTION_AGE and MAX_CONNECTION_AGE_GRACE: GOAWAY after the one, and the connection is cut after the other.
pub fn aging(listener: TcpListener, age: Duration, grace: Duration) -> App {
    App::tcp_on(listener, move |stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let (mut old, mut over) =
            (Box::pin(tokio::time::sleep(age)), Box::pin(tokio::time::sleep(age + grace)));
        let mut told = false;
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, reply))) => drop(tokio::spawn(answer(request, reply))),
                    _ => return,
                },
                () = old.as_mut(), if !told => {
                    told = true;
                    connection.graceful_shutdown();
                }
                () = over.as_mut() => return,
            }
        }
    })
}

/// One message and the status 0, or messages for ever.
async fn answer(request: Request<RecvStream>, mut reply: SendResponse<Bytes>) {
    let endless = request.uri().path() == "/watch";
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut stream) = reply.send_response(response, false) else { return };
    while stream.send_data(Bytes::from_static(MESSAGE), false).is_ok() {
        if !endless {
            let _ = stream.send_trailers(HeaderMap::from_iter([status("0")]));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn status(code: &'static str) -> (http::HeaderName, HeaderValue) {
    (http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))
}

/// Watches until the server has cut it so many times; says how often a stream ended otherwise than by the status 14.
///
/// # Panics
/// If no connection is to be had.
pub async fn watch(to: Dial, times: usize) -> Vec<String> {
    let stream = within("a connection", to.connect()).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut wrong = Vec::new();
    for _ in 0..times {
        let mut ready = within("room", requests.clone().ready()).await.unwrap();
        let request = Request::post("http://orders/watch").header("content-type", "application/grpc");
        let (response, mut upload) = ready.send_request(request.body(()).unwrap(), false).unwrap();
        upload.send_data(Bytes::from_static(MESSAGE), true).unwrap();
        let ended = within("a stream", async {
            let (head, mut body) = response.await.map_err(|error| format!("no head: {error}"))?.into_parts();
            if let Some(reason) = head.headers.get("x-tulle-error") {
                return Err(format!("refused: {reason:?}"));
            }
            while let Some(data) = body.data().await {
                let data = data.map_err(|error| format!("cut: {error}"))?;
                let _ = body.flow_control().release_capacity(data.len());
            }
            let trailers =
                body.trailers().await.map_err(|error| format!("cut: {error}"))?.unwrap_or_default();
            let told = trailers.get("grpc-status").cloned();
            if told.as_ref().is_some_and(|told| told == "14") { Ok(()) } else { Err(format!("{told:?}")) }
        });
        wrong.extend(ended.await.err());
    }
    wrong
}
