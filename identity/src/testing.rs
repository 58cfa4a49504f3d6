//! What the tests of both sources need: an authority, and a follower that remembers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tulle_certs::issue::{Authority, ROOT_LIFETIME};
use tulle_certs::key::csr;
use tulle_certs::{Creds, PrivateKey, SpiffeId, TrustDomain, pem};

use crate::{Follower, SourceError};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn authority() -> Authority {
    Authority::generate(&TrustDomain::default(), ROOT_LIFETIME, SystemTime::now()).unwrap()
}

pub(crate) fn id(name: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", name).unwrap()
}

pub(crate) fn creds(authority: &Authority, name: &str, lifetime: Duration) -> Creds {
    let key = PrivateKey::generate().unwrap();
    let issued = authority.issue(&csr(&key, None).unwrap(), &id(name), lifetime, SystemTime::now()).unwrap();
    Creds::new(issued.chain, key, Arc::new(authority.bundle().clone()), SystemTime::now()).unwrap()
}

/// The key as PKCS#8.
pub(crate) fn pkcs8(creds: &Creds) -> Vec<u8> {
    pem::blocks(&creds.key().to_pem()).unwrap()[0].der.to_vec()
}

/// What a source told.
#[derive(Debug)]
pub(crate) enum Heard {
    Creds(Arc<Creds>),
    Failed(String),
}

pub(crate) struct Remembers(UnboundedSender<Heard>);

impl Remembers {
    pub(crate) fn new() -> (Self, UnboundedReceiver<Heard>) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), receiver)
    }
}

impl Follower for Remembers {
    fn take(&mut self, creds: Arc<Creds>) {
        self.0.send(Heard::Creds(creds)).unwrap();
    }

    fn failed(&mut self, error: &SourceError, _: u32) {
        self.0.send(Heard::Failed(error.to_string())).unwrap();
    }
}

/// The next that is told must be credentials.
pub(crate) async fn taken(heard: &mut UnboundedReceiver<Heard>) -> Arc<Creds> {
    match heard.recv().await.unwrap() {
        Heard::Creds(creds) => creds,
        Heard::Failed(error) => panic!("{error}"),
    }
}

/// The next that is told must be a failure.
pub(crate) async fn failed(heard: &mut UnboundedReceiver<Heard>) -> String {
    match heard.recv().await.unwrap() {
        Heard::Failed(error) => error,
        Heard::Creds(creds) => panic!("{creds:?}"),
    }
}
