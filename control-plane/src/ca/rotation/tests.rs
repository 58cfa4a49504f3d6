//! What is kept, through the authority: in a folder and in a Secret.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tulle_certs::issue::{Authority, ROOT_LIFETIME};
use tulle_certs::key::csr;
use tulle_certs::{Creds, Pin, PrivateKey, SpiffeId, TrustBundle, TrustDomain};
use zeroize::Zeroizing;

use super::record::{Change, Record, State, Wanted, Why, seconds};
use super::*;
use crate::ca::store::{CA_CERTIFICATES, CA_KEY, NAMES, ROTATION};
use crate::ca::{Ca, Options, stored_tokens};
use crate::cluster::Secret;
use crate::cluster::testing::ApiServer;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::now()
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn open(dir: &Path) -> Ca {
    Ca::open(dir, &domain(), now()).unwrap()
}

/// The root that is told under this pin.
fn alone(ca: &Ca, pin: Pin) -> Arc<TrustBundle> {
    let roots = ca.bundle().roots().iter().filter(|root| Pin::of(root).unwrap() == pin).cloned().collect();
    Arc::new(TrustBundle::new(domain(), roots).unwrap())
}

/// Whether what is issued now is good for who trusts these roots.
fn is_good_for(ca: &Ca, bundle: &Arc<TrustBundle>) -> bool {
    let key = PrivateKey::generate().unwrap();
    let id = SpiffeId::new(&domain(), "shop", "web").unwrap();
    let request = csr(&key, None).unwrap();
    let issued = ca.0.issuing.load().authority.issue(&request, &id, HOUR, now()).unwrap();
    Creds::new(issued.chain, key, Arc::clone(bundle), now()).is_ok()
}

/// The pins of what the control plane shows.
fn shown(ca: &Ca) -> Vec<Pin> {
    ca.creds().chain().iter().map(|certificate| Pin::of(certificate).unwrap()).collect()
}

async fn keep(ca: &Ca, next: impl Fn(&Record) -> Record) {
    let record = ca.record();
    assert!(ca.keep_record(&record, &next(&record), now()).await.unwrap());
}

async fn begin(ca: &Ca) {
    let (old, next) = ca.make_next(now()).unwrap();
    keep(ca, |record| record.published(old.clone(), next.clone(), Why::Asked, now())).await;
}

fn in_state(state: impl Fn(Change) -> State) -> impl Fn(&Record) -> Record {
    move |record| {
        let change = record.change().unwrap().clone();
        Record { state: state(change), wanted: None, ..record.clone() }
    }
}

#[tokio::test]
async fn whenever_it_is_killed_the_authority_is_the_one_that_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let old = ca.pin();
    let only_old = alone(&ca, old);
    begin(&ca).await;
    let new: Pin = ca.record().change().unwrap().next.pin.parse().unwrap();

    let ca = open(dir.path());
    assert_eq!((ca.pin(), ca.bundle().pins()), (old, vec![old, new]), "published");
    let only_new = alone(&ca, new);
    assert!(is_good_for(&ca, &only_old) && !is_good_for(&ca, &only_new), "published: the old one issues");
    assert_eq!(stored_tokens(dir.path()).unwrap().pin, old);
    assert!(!shown(&ca).contains(&new));

    for word in ["switched", "draining"] {
        let state = |change| match word {
            "switched" => State::Switched(change),
            _ => State::Draining { change, until: seconds(now()) + 60 },
        };
        keep(&ca, in_state(state)).await;
        for ca in [ca.clone(), open(dir.path())] {
            assert_eq!(ca.record().state.word(), word);
            assert_eq!((ca.pin(), ca.bundle().pins()), (new, vec![old, new]), "{word}");
            assert!(is_good_for(&ca, &only_old) && is_good_for(&ca, &only_new), "{word}");
            assert_eq!(stored_tokens(dir.path()).unwrap().pin, new, "{word}");
            // The root itself before the bridge, which has its key.
            assert_eq!(shown(&ca)[1..], [new, new, old], "{word}");
        }
    }

    keep(&ca, |record| {
        let retired = in_state(State::Retired)(record);
        retired.with_former(now() + HOUR, now())
    })
    .await;
    let kept_key = || std::fs::read_to_string(dir.path().join(CA_KEY)).unwrap();
    let old_key = kept_key();
    for step in ["retired", "half", "replaced", "completed"] {
        match step {
            "half" => {
                let key = ca.record().change().unwrap().next.key.clone();
                std::fs::write(dir.path().join(CA_KEY), key.as_bytes()).unwrap();
            }
            "replaced" => {
                let record = ca.record();
                assert!(ca.replace(&record, now()).await.unwrap());
            }
            "completed" => keep(&ca, |record| record.completed(now())).await,
            _ => {}
        }
        for ca in [ca.clone(), open(dir.path())] {
            assert_eq!((ca.pin(), ca.bundle().pins()), (new, vec![new]), "{step}");
            assert!(is_good_for(&ca, &only_new) && !is_good_for(&ca, &only_old), "{step}");
            let tokens = stored_tokens(dir.path()).unwrap();
            assert_eq!((tokens.pin, tokens.trust_domain), (new, Some(domain())), "{step}");
            assert_eq!(shown(&ca)[1..], [new, new, old], "{step}: the old pin still leads here");
        }
    }
    assert!(ca.record().is_idle() && kept_key() != old_key);
    assert!(!std::fs::read_to_string(dir.path().join(ROTATION)).unwrap().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn further_roots_stay_and_the_old_one_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (old, further) =
        (open(dir.path()).pin(), Authority::generate(&domain(), ROOT_LIFETIME, now()).unwrap());
    let path = dir.path().join(CA_CERTIFICATES);
    let both = std::fs::read_to_string(&path).unwrap() + &further.to_pem();
    std::fs::write(&path, both).unwrap();
    let ca = open(dir.path());
    begin(&ca).await;
    let new: Pin = ca.record().change().unwrap().next.pin.parse().unwrap();
    let further = further.pin().unwrap();
    assert_eq!(ca.bundle().pins(), [old, further, new]);
    keep(&ca, in_state(State::Retired)).await;
    assert_eq!(ca.bundle().pins(), [new, further]);
    let record = ca.record();
    assert!(ca.replace(&record, now()).await.unwrap());
    keep(&ca, |record| record.completed(now())).await;
    assert_eq!(open(dir.path()).bundle().pins(), [new, further]);
}

#[tokio::test]
async fn what_cannot_be_asked_for_now_is_refused_and_what_can_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    assert!(matches!(ca.want(Wanted::Abort, now()).await, Err(NotNow::Idle)));
    ca.want(Wanted::Rotation, now()).await.unwrap();
    assert_eq!(open(dir.path()).record().wanted, Some(Wanted::Rotation));
    begin(&ca).await;
    assert_eq!(ca.record().wanted, None);
    assert!(matches!(ca.want(Wanted::Rotation, now()).await, Err(NotNow::UnderWay("published"))));
    ca.want(Wanted::Abort, now()).await.unwrap();
    keep(&ca, in_state(State::Switched)).await;
    assert!(matches!(ca.want(Wanted::Abort, now()).await, Err(NotNow::TooLate("switched"))));
}

#[tokio::test]
async fn what_is_asked_for_while_a_step_is_taken_is_lost_by_neither() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    for lifetime in 1..30 {
        keep(&ca, Record::abandoned).await;
        let record = ca.record();
        let next = Record { lifetime, ..Record::clone(&record) };
        let (kept, wanted) =
            tokio::join!(ca.keep_record(&record, &next, now()), ca.want(Wanted::Rotation, now()));
        wanted.unwrap();
        let text = std::fs::read_to_string(dir.path().join(ROTATION)).unwrap();
        assert_eq!(Record::read(Some(&text)).unwrap(), *ca.record(), "what is kept is what is gone by");
        assert_eq!(ca.record().wanted, Some(Wanted::Rotation));
        assert_eq!(kept.unwrap(), ca.record().lifetime == lifetime);
    }
}

#[tokio::test]
async fn what_somebody_asked_who_went_away_meanwhile_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    keep(&ca, |record| Record { lifetime: 60, ..record.clone() }).await;
    let record = ca.record();
    let asked = Record { wanted: Some(Wanted::Rotation), ..Record::clone(&record) };
    // Written, and not taken in.
    std::fs::write(dir.path().join(ROTATION), asked.to_text()).unwrap();
    assert!(!ca.keep_record(&record, &record.abandoned(), now()).await.unwrap());
    assert_eq!(*ca.record(), asked, "the next step begins there");
}

#[tokio::test]
async fn a_record_of_another_root_says_nothing_and_a_damaged_one_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    begin(&ca).await;
    let theirs = Authority::generate(&domain(), ROOT_LIFETIME, now()).unwrap();
    std::fs::write(dir.path().join(CA_KEY), theirs.key().to_pem().as_bytes()).unwrap();
    std::fs::write(dir.path().join(CA_CERTIFICATES), theirs.to_pem()).unwrap();
    let ca = open(dir.path());
    assert!(ca.is_void());
    assert_eq!(ca.bundle().pins(), [theirs.pin().unwrap()]);
    keep(&ca, Record::abandoned).await;
    assert!(!open(dir.path()).is_void());

    std::fs::write(dir.path().join(ROTATION), "{").unwrap();
    let error = Ca::open(dir.path(), &domain(), now()).unwrap_err().to_string();
    assert!(error.contains("rotation.json") && error.contains("backup"), "{error}");
}

#[tokio::test]
async fn a_step_that_the_next_start_would_not_take_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let (old, mut next) = ca.make_next(now()).unwrap();
    next.key = PrivateKey::generate().unwrap().to_pem();
    let record = ca.record();
    let bad = record.published(old, next, Why::Asked, now());
    assert!(ca.keep_record(&record, &bad, now()).await.is_err());
    assert!(ca.record().is_idle() && open(dir.path()).record().is_idle());
}

async fn replica(server: &Arc<ApiServer>) -> (Ca, Secret) {
    let secret = Secret::new(server.client(), "tulle-system");
    let kept = secret.open(&domain(), now()).await.unwrap();
    let store = Arc::new(secret.clone());
    (Ca::with_store(store, kept, &domain(), now(), Options::default()).unwrap(), secret)
}

#[tokio::test]
async fn of_two_replicas_one_takes_a_step_and_the_other_follows() {
    let server = ApiServer::start();
    let ((a, secret), (b, _)) = (replica(&server).await, replica(&server).await);
    let record = a.record();
    let steps = [&a, &b].map(|ca| {
        let (old, next) = ca.make_next(now()).unwrap();
        record.published(old, next, Why::Asked, now())
    });
    let (by_a, by_b) =
        tokio::join!(a.keep_record(&record, &steps[0], now()), b.keep_record(&record, &steps[1], now()));
    let taken = [by_a.unwrap(), by_b.unwrap()];
    assert_eq!(taken.iter().filter(|taken| **taken).count(), 1, "{taken:?}");
    let (kept, winner) = (secret.open(&domain(), now()).await.unwrap(), usize::from(taken[1]));
    for ca in [&a, &b] {
        ca.take_in(kept.clone(), &NAMES, now()).unwrap();
        assert_eq!(*ca.record(), steps[winner]);
        assert_eq!(ca.bundle().pins().len(), 2);
    }
    assert_eq!(a.bundle(), b.bundle(), "told in the same order");
    // Who takes it away takes nothing away.
    let mut without = kept.clone();
    without.remove(ROTATION);
    let restored = a.restored(&without, &NAMES).unwrap();
    assert_eq!(restored.get(ROTATION), kept.get(ROTATION));
}

#[tokio::test]
async fn a_root_that_somebody_has_put_there_is_not_written_over_by_a_step_from_before() {
    let server = ApiServer::start();
    let (ca, secret) = replica(&server).await;
    begin(&ca).await;
    keep(&ca, in_state(State::Retired)).await;
    // It was to take the old one's place, when somebody repairs what is kept.
    let record = ca.record();
    let repaired = secret.repair(None, true, now()).await.unwrap();
    let kept = secret.open(&domain(), now()).await.unwrap();
    assert!(!ca.replace(&record, now()).await.unwrap());
    assert!(!ca.keep_record(&record, &record.completed(now()), now()).await.unwrap());
    assert_eq!(secret.open(&domain(), now()).await.unwrap(), kept);
    ca.take_in(kept, &NAMES, now()).unwrap();
    assert_eq!((ca.pin(), ca.bundle().pins()), (repaired.pin, vec![repaired.pin]));

    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    begin(&ca).await;
    keep(&ca, in_state(State::Retired)).await;
    let other = Record { lifetime: 1, ..Record::clone(&ca.record()) };
    let kept_key = || std::fs::read_to_string(dir.path().join(CA_KEY)).unwrap();
    let before = kept_key();
    assert!(!ca.replace(&other, now()).await.unwrap());
    assert_eq!(kept_key(), before);
}

#[tokio::test]
async fn replicas_see_what_the_others_say_of_themselves() {
    let server = ApiServer::start();
    let ((a, secret), (b, _)) = (replica(&server).await, replica(&server).await);
    let report = |number| Report { number, ..Report::default() };
    a.report("a", &report(1), &|_| true).await.unwrap();
    b.report("b", &report(2), &|_| true).await.unwrap();
    let kept = secret.open(&domain(), now()).await.unwrap();
    a.take_in(kept, &NAMES, now()).unwrap();
    assert_eq!(a.reports().keys().collect::<Vec<_>>(), ["a", "b"]);
    // One that has gone.
    a.report("a", &report(3), &|name| name != "b").await.unwrap();
    let kept = secret.open(&domain(), now()).await.unwrap();
    b.take_in(kept, &NAMES, now()).unwrap();
    assert_eq!(*b.reports(), Reports::from([("a".to_owned(), report(3))]));
}

#[tokio::test]
async fn an_expired_root_in_the_secret_is_repaired_for_every_replica() {
    let server = ApiServer::start();
    let (ca, secret) = replica(&server).await;
    let error = secret.repair(None, false, now()).await.unwrap_err();
    assert!(matches!(error, RepairError::Unneeded(_)), "{error}");
    let (day, old) = (24 * HOUR, ca.pin());
    let later = now() + ROOT_LIFETIME + day;
    let repaired = secret.repair(None, false, later).await.unwrap();
    assert_eq!((repaired.from, &repaired.trust_domain), (Some(old), &domain()));
    let kept = secret.open(&domain(), later).await.unwrap();
    ca.take_in(kept, &NAMES, later).unwrap();
    assert_eq!((ca.pin(), ca.bundle().pins()), (repaired.pin, vec![repaired.pin]));
    let nobodys = Kept::from([(CA_KEY, Zeroizing::new("?".to_owned()))]);
    let place = |name: &str| name.to_owned();
    assert!(matches!(need(&nobodys, &place, &domain(), later), Need::Unusable(_)));
    assert_eq!(need(&Kept::new(), &place, &domain(), later), Need::Absent);
}
