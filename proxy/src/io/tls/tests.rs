//! Both ends against each other and against tokio-rustls, over a pipe that takes what it likes.

use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tulle_certs::issue::Authority;
use tulle_certs::key::csr;
use tulle_certs::{Alpn, Creds, PrivateKey, SpiffeId, TrustDomain, creds};

use super::*;

/// Credentials of `account` in the mesh of `authority`.
fn creds_of(authority: &Authority, account: &str) -> Creds {
    let now = SystemTime::now();
    let key = PrivateKey::generate().unwrap();
    let id = SpiffeId::new(authority.trust_domain(), "default", account).unwrap();
    let issued = authority.issue(&csr(&key, None).unwrap(), &id, Duration::from_secs(3600), now).unwrap();
    Creds::new(issued.chain, key, Arc::new(authority.bundle().clone()), now).unwrap()
}

fn authority() -> Authority {
    let day = Duration::from_secs(86_400);
    Authority::generate(&TrustDomain::default(), day, SystemTime::now()).unwrap()
}

/// What `web` and `orders` need of each other.
fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let authority = authority();
    let (web, orders) = (creds_of(&authority, "web"), creds_of(&authority, "orders"));
    (web.client(orders.id(), Alpn::Tcp), orders.inbound())
}

/// A pair whose handshake is over.
async fn pair(pipe: usize) -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (client, server) = configs();
    let (near, far) = duplex(pipe);
    let (client, server) =
        tokio::join!(TlsStream::connect(client, creds::server_name(), near), TlsStream::accept(server, far));
    (client.unwrap(), server.unwrap())
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 256) as u8).collect()
}

/// Sends `count` bytes and the end from one to the other.
async fn passes(mut from: impl AsyncWrite + Unpin, mut to: impl AsyncRead + Unpin, count: usize) {
    let sent = bytes(count);
    let send = async {
        from.write_all(&sent).await.unwrap();
        from.shutdown().await.unwrap();
    };
    let mut came = Vec::new();
    let ((), read) = tokio::join!(send, to.read_to_end(&mut came));
    read.unwrap();
    assert!(came == sent, "{} of {} bytes came, or others", came.len(), sent.len());
}

#[tokio::test]
async fn what_is_sent_comes_whole_however_little_the_pipe_takes() {
    for (pipe, count) in [(1, 3000), (7, 40_000), (4096, 300_000), (1 << 20, 1_000_000)] {
        let (client, server) = pair(pipe).await;
        let (mut client_reads, mut client_writes) = tokio::io::split(client);
        let (mut server_reads, mut server_writes) = tokio::io::split(server);
        tokio::join!(
            passes(&mut client_writes, &mut server_reads, count),
            passes(&mut server_writes, &mut client_reads, count)
        );
    }
}

#[tokio::test]
async fn it_speaks_with_tokio_rustls_both_ways() {
    let (client, server) = configs();
    let (near, far) = duplex(1000);
    let (ours, theirs) = tokio::join!(
        TlsStream::connect(client.clone(), creds::server_name(), near),
        TlsAcceptor::from(server.clone()).accept(far)
    );
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
    let (mut read, write) = tokio::io::split(ours);
    let (mut their_read, their_write) = tokio::io::split(theirs);
    tokio::join!(passes(write, &mut their_read, 100_000), passes(their_write, &mut read, 100_000));
    let (near, far) = duplex(1000);
    let (theirs, ours) = tokio::join!(
        TlsConnector::from(client).connect(creds::server_name(), near),
        TlsStream::accept(server, far)
    );
    let (mut read, write) = tokio::io::split(ours.unwrap());
    let (mut their_read, their_write) = tokio::io::split(theirs.unwrap());
    tokio::join!(passes(write, &mut their_read, 100_000), passes(their_write, &mut read, 100_000));
}

#[tokio::test]
async fn slices_are_written_as_one() {
    let (mut client, mut server) = pair(1 << 20).await;
    let slices = [IoSlice::new(b"head"), IoSlice::new(b""), IoSlice::new(b"body")];
    assert_eq!(client.write_vectored(&slices).await.unwrap(), 8);
    client.flush().await.unwrap();
    let mut came = [0; 64];
    assert_eq!(server.read(&mut came).await.unwrap(), 8);
    assert_eq!(&came[..8], b"headbody");
}

#[tokio::test]
async fn a_reader_that_takes_little_gets_all() {
    let (mut client, mut server) = pair(1 << 20).await;
    client.write_all(&bytes(50_000)).await.unwrap();
    let mut came = Vec::new();
    let mut space = [0; 777];
    while came.len() < 50_000 {
        let count = server.read(&mut space).await.unwrap();
        came.extend_from_slice(&space[..count]);
    }
    assert!(came == bytes(50_000));
}

#[tokio::test]
async fn an_end_that_nobody_spoke_of_is_an_error() {
    let (mut client, server) = pair(1 << 20).await;
    drop(server);
    let error = client.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn after_the_peers_end_there_may_still_be_written() {
    let (mut client, mut server) = pair(1 << 20).await;
    server.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 10]).await.unwrap(), 0);
    assert_eq!(client.read(&mut [0; 10]).await.unwrap(), 0);
    client.write_all(b"more").await.unwrap();
    let mut came = [0; 4];
    server.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, b"more");
    let error = server.write_all(b"none").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_forged_record_ends_the_connection_and_tells_the_peer() {
    let (mut client, mut server) = pair(1 << 20).await;
    client.io.write_all(b"\x17\x03\x03\x00\x20").await.unwrap();
    client.io.write_all(&[0; 0x20]).await.unwrap();
    let error = server.read(&mut [0; 10]).await.unwrap_err();
    assert!(error.get_ref().unwrap().downcast_ref::<rustls::Error>().is_some(), "{error}");
    assert_eq!(server.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let told = client.read(&mut [0; 10]).await.unwrap_err();
    assert!(told.to_string().contains("BadRecordMac"), "{told}");
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_mesh_is_told_so() {
    let (_, server) = configs();
    let stranger = authority();
    let (web, orders) = (creds_of(&stranger, "web"), creds_of(&stranger, "orders"));
    let (near, far) = duplex(1 << 16);
    let (client, server) = tokio::join!(
        TlsStream::connect(web.client(orders.id(), Alpn::Tcp), creds::server_name(), near),
        TlsStream::accept(server, far)
    );
    let (client, server) = (client.err().unwrap(), server.err().unwrap());
    for error in [client, server] {
        assert!(error.get_ref().unwrap().downcast_ref::<rustls::Error>().is_some(), "{error}");
    }
}

#[tokio::test]
async fn keys_are_renewed_under_way() {
    let (mut client, mut server) = pair(1 << 20).await;
    for round in 0..3 {
        let Session::Client(session) = &mut client.session else { unreachable!("a client") };
        let UnbufferedStatus { state: Ok(ConnectionState::WriteTraffic(traffic)), .. } =
            session.process_tls_records(&mut [])
        else {
            unreachable!("an open connection")
        };
        traffic.refresh_traffic_keys().unwrap();
        client.write_all(b"under the new key").await.unwrap();
        let mut came = [0; 17];
        server.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"under the new key", "in round {round}");
        // The server renews its own in answer.
        server.write_all(b"likewise").await.unwrap();
        let mut came = [0; 8];
        client.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"likewise");
    }
}

#[tokio::test]
async fn an_idle_connection_keeps_no_buffer() {
    let (mut client, mut server) = pair(1 << 20).await;
    client.write_all(&bytes(100_000)).await.unwrap();
    let mut came = vec![0; 100_000];
    server.read_exact(&mut came).await.unwrap();
    for stream in [&client, &server] {
        let kept = stream.incoming.capacity() + stream.plain.capacity() + stream.outgoing.capacity();
        assert_eq!(kept, 0);
    }
}
