//! Counts what a relayed HTTP/1 exchange allocates in the codec, so that nobody adds to it without noticing.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use http::Request;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tulle_proxy::wire::h1::{Body, Client, HeadError, Limits, Settings, serve};

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sends `request`, has the origin answer with `response`, and returns how much was allocated meanwhile.
async fn exchange(
    client: &mut DuplexStream,
    origin: &mut DuplexStream,
    request: &[u8],
    response: &[u8],
    space: &mut [u8],
) -> usize {
    let before = COUNT.get();
    client.write_all(request).await.unwrap();
    origin.read_exact(&mut space[..request.len()]).await.unwrap();
    origin.write_all(response).await.unwrap();
    client.read_exact(&mut space[..response.len()]).await.unwrap();
    assert_eq!(&space[..response.len()], response);
    COUNT.get() - before
}

#[tokio::test]
async fn a_relayed_exchange_allocates_little() {
    let (mut client, near) = tokio::io::duplex(256 * 1024);
    let (far, mut origin) = tokio::io::duplex(256 * 1024);
    let pool = Arc::new(Mutex::new(vec![Client::new(far, Limits::default())]));
    let handler = move |request: Request<Body>| {
        let pool = Arc::clone(&pool);
        async move {
            let client = pool.lock().pop().unwrap();
            client.send(request, |_| (), move |client| pool.lock().push(client)).await.unwrap()
        }
    };
    let refuse = |error: HeadError| -> http::Response<Body> { panic!("{error}") };
    tokio::spawn(serve(near, &[], Settings::default(), handler, refuse, std::future::pending()));
    let fields = "Host: orders.default\r\nUser-Agent: curl/8\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nCookie: a=b\r\n";
    let get = format!("GET /orders/1?a=b HTTP/1.1\r\n{fields}\r\n");
    let own = format!("GET /orders/1?a=b HTTP/1.1\r\n{fields}X-Request-Id: 1\r\nX-Tenant: 2\r\n\r\n");
    let post = format!("POST / HTTP/1.1\r\n{fields}Content-Length: 300\r\n\r\n{}", "x".repeat(300));
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: now\r\nContent-Length: 2\r\n\r\nok";
    let mut space = vec![0; 4096];
    for (name, request, most) in
        [("GET", get, 12), ("GET with fields of its own", own, 14), ("POST", post, 12)]
    {
        let mut counts = Vec::with_capacity(20);
        for _ in 0..20 {
            let count =
                exchange(&mut client, &mut origin, request.as_bytes(), answer.as_bytes(), &mut space).await;
            counts.push(count);
        }
        // The first ones find buffers too small.
        let usual = counts[10..].iter().max().unwrap();
        assert!(*usual <= most, "{name}: {counts:?}");
    }
}
