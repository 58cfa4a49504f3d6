use std::collections::BTreeMap;

use bytes::Bytes;
use tulle_certs::TrustDomain;

use super::super::agreement::Reports;
use super::super::record::{Wanted, seconds};
use super::*;
use crate::ca::Options;
use crate::index::Index;
use crate::model::Settings;

const LIFETIME: Duration = Duration::from_secs(60);

/// An authority in a folder, with everything around it, a second at a time.
struct Stage {
    _dir: tempfile::TempDir,
    ca: Ca,
    keeper: Keeper,
    publisher: Arc<Publisher>,
    now: SystemTime,
    tick: Instant,
}

fn roots(ca: &Ca) -> Vec<Bytes> {
    ca.bundle().roots().iter().map(|root| Bytes::copy_from_slice(root)).collect()
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (domain, now) = (TrustDomain::default(), SystemTime::now());
        let options = Options { lifetime: LIFETIME, ..Options::default() };
        let ca = Ca::open_with(dir.path(), &domain, now, options).unwrap();
        let mut index = Index::default();
        index.set_bundle(domain.as_str(), roots(&ca));
        let publisher = Publisher::new(index, Settings::default(), Vec::new());
        let running = Arc::clone(&publisher);
        tokio::spawn(async move { running.run().await });
        let keeper = Keeper::new(
            ca.clone(),
            Arc::clone(&publisher),
            Proxies::default(),
            Duration::ZERO,
            Metrics::new().unwrap(),
            Progress::default(),
        );
        Self { _dir: dir, ca, keeper, publisher, now, tick: Instant::now() }
    }

    async fn second(&mut self) {
        self.now += Duration::from_secs(1);
        self.tick += Duration::from_secs(1);
        let record = self.ca.record();
        self.keeper.turn(&record, self.now, self.tick).await;
    }

    /// What is to be told is told.
    async fn publish(&self) {
        let wanted = roots(&self.ca);
        self.publisher.set_bundle(self.ca.trust_domain().as_str(), wanted);
        for _ in 0..1000 {
            if !self.keeper.own().bundle.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("not published");
    }
}

#[tokio::test]
async fn a_root_is_followed_by_another_through_all_phases() {
    let mut stage = Stage::new();
    let old = stage.ca.pin();
    stage.ca.want(Wanted::Rotation, stage.now).await.unwrap();
    let mut phases: BTreeMap<&str, u64> = BTreeMap::new();
    let mut order = Vec::new();
    for _ in 0..200 {
        stage.second().await;
        let phase = stage.ca.record().state.word();
        *phases.entry(phase).or_default() += 1;
        if order.last() != Some(&phase) {
            order.push(phase);
        }
        stage.publish().await;
    }
    // The first second has kept how long leaves live.
    assert_eq!(order, ["idle", "published", "switched", "draining", "retired", "idle"]);
    assert!((75..=77).contains(&phases["draining"]), "{phases:?}");
    assert_ne!(stage.ca.pin(), old);
    assert_eq!(stage.ca.bundle().pins(), [stage.ca.pin()]);
    let record = stage.ca.record();
    assert_eq!((record.lifetime, record.former.len()), (60, 1));
    assert!(record.completed.is_some_and(|at| at <= seconds(stage.now)));
}

#[tokio::test]
async fn nothing_is_switched_while_the_new_root_is_not_even_published() {
    let mut stage = Stage::new();
    stage.ca.want(Wanted::Rotation, stage.now).await.unwrap();
    // Nobody tells the publisher.
    for _ in 0..100 {
        stage.second().await;
    }
    assert_eq!(stage.ca.record().state.word(), "published");
    let waits_for = stage.keeper.progress.seen().waits_for;
    assert_eq!(waits_for.iter().map(|one| one.why).collect::<Vec<_>>(), [Lacks::OldBundle]);
    stage.publish().await;
    for _ in 0..20 {
        stage.second().await;
    }
    assert_ne!(stage.ca.record().state.word(), "published");
}

/// Another replica, as it is seen.
struct Two {
    running: Vec<String>,
    leads: watch::Sender<bool>,
    /// The lease is lost while it is asked who runs.
    loses: bool,
}

#[tonic::async_trait]
impl Replicas for Two {
    fn name(&self) -> &str {
        "a"
    }

    fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    fn leading(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    async fn running(&self) -> Result<Vec<String>, String> {
        if self.loses {
            self.leads.send_replace(false);
        }
        Ok(self.running.clone())
    }
}

#[tokio::test]
async fn a_replica_that_runs_and_says_nothing_is_waited_for_and_only_one_that_leads_takes_steps() {
    let mut stage = Stage::new();
    let running = vec!["a".to_owned(), "b".to_owned()];
    let two = Arc::new(Two { running, leads: watch::Sender::new(false), loses: false });
    let beside: Arc<dyn Replicas> = two.clone();
    stage.keeper.replicas = Some(beside);
    stage.ca.want(Wanted::Rotation, stage.now).await.unwrap();
    for _ in 0..50 {
        stage.second().await;
    }
    assert_eq!(stage.ca.record().state.word(), "idle", "somebody else leads");
    two.leads.send_replace(true);
    for _ in 0..50 {
        stage.second().await;
        stage.publish().await;
    }
    assert_eq!(stage.ca.record().state.word(), "published");
    let waits_for = stage.keeper.progress.seen().waits_for;
    assert_eq!(
        waits_for.iter().map(|one| (one.replica.as_str(), one.why)).collect::<Vec<_>>(),
        [("b", Lacks::Silent)]
    );
    // What it says of itself is kept where the other sees it.
    let kept = std::fs::read_to_string(stage._dir.path().join("rotation-reports.json")).unwrap();
    let kept: Reports = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept.keys().collect::<Vec<_>>(), ["a"]);
    assert!(!kept["a"].bundle.is_empty());
}

#[tokio::test]
async fn a_replica_that_loses_the_lease_while_it_looks_takes_no_step() {
    let mut stage = Stage::new();
    let two = Arc::new(Two { running: vec!["a".to_owned()], leads: watch::Sender::new(true), loses: true });
    let beside: Arc<dyn Replicas> = two.clone();
    stage.keeper.replicas = Some(beside);
    stage.ca.want(Wanted::Rotation, stage.now).await.unwrap();
    for _ in 0..50 {
        two.leads.send_replace(true);
        stage.second().await;
        stage.publish().await;
    }
    assert_eq!(stage.ca.record().state.word(), "published");
}
