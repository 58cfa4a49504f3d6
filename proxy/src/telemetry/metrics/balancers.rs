//! What balancers have counted: read when metrics are scraped, by port of a service.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::budget::{Budget, Group};
use super::families::{self, Family, Kind};
use super::{Metrics, Sample};

/// One port's balancer.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    /// As [`RequestLabels::service`](super::RequestLabels::service).
    pub service: Box<str>,
    /// By state.
    pub endpoints: Vec<(&'static str, u64)>,
    /// By cause.
    pub ejections: Vec<(&'static str, u64)>,
    pub withheld: u64,
    pub panics: u64,
    /// What went to the own zone, and to others.
    pub zones: [u64; 2],
}

// === impl Metrics ===

impl Metrics {
    /// Shows what `read` gives whenever metrics are scraped.
    pub fn balancers(&self, read: impl Fn() -> Vec<Balancer> + Send + Sync + 'static) {
        let (budget, kept) = (self.budget.clone(), Mutex::<Kept>::default());
        self.at_scrape(move |samples| show(&budget, &mut kept.lock(), &read(), samples));
    }
}

/// What was counted in the overflow: a service that is not used any more is forgotten with its counts, and their sum must not go back.
#[derive(Debug, Default)]
struct Kept {
    /// Of each service, as it was read last.
    last: HashMap<Box<str>, Vec<Sample>>,
    /// Of those that were forgotten.
    forgotten: Vec<Sample>,
}

fn show(budget: &Budget, kept: &mut Kept, balancers: &[Balancer], samples: &mut Vec<Sample>) {
    let mut overflow: Vec<Sample> = Vec::new();
    let mut counted: HashMap<Box<str>, Vec<Sample>> = HashMap::new();
    for balancer in balancers {
        let admitted = budget.admit(Group::Balancers, balancer.service.as_bytes(), 0);
        for (family, label, value) in values(balancer) {
            let service = if admitted { &*balancer.service } else { "" };
            let label = (family.labels.len() == 3).then_some(label);
            let labels = [Some(service), label, Some(if admitted { "" } else { "true" })];
            let labels = labels.into_iter().flatten().map(str::to_owned).collect();
            let sample = Sample { family, labels, value: value as f64 };
            if admitted {
                samples.push(sample);
                continue;
            }
            if family.kind == Kind::Counter {
                add(counted.entry(balancer.service.clone()).or_default(), sample);
            } else {
                add(&mut overflow, sample);
            }
        }
    }
    kept.read(counted);
    for sample in kept.last.values().flatten().chain(&kept.forgotten) {
        add(&mut overflow, sample.clone());
    }
    samples.append(&mut overflow);
}

// === impl Kept ===

impl Kept {
    /// What is read now. A service that is not among it, or counts from zero again, was forgotten.
    fn read(&mut self, now: HashMap<Box<str>, Vec<Sample>>) {
        for (service, last) in std::mem::replace(&mut self.last, now) {
            let now = self.last.get(&service);
            let is_back = |last: &Sample| {
                now.into_iter().flatten().any(|now| is_same(now, last) && now.value >= last.value)
            };
            if !last.iter().all(is_back) {
                last.into_iter().for_each(|sample| add(&mut self.forgotten, sample));
            }
        }
    }
}

fn is_same(one: &Sample, other: &Sample) -> bool {
    one.family == other.family && one.labels == other.labels
}

/// One more, or more of one that is among them.
pub(super) fn add(sums: &mut Vec<Sample>, sample: Sample) {
    let known = sums.iter_mut().find(|one| is_same(one, &sample));
    match known {
        Some(known) => known.value += sample.value,
        None => sums.push(sample),
    }
}

/// As many as [`Group::Balancers`] has room for.
fn values(balancer: &Balancer) -> impl Iterator<Item = (&'static Family, &'static str, u64)> {
    let endpoints = balancer.endpoints.iter();
    let endpoints = endpoints.map(|(state, count)| (&families::BALANCER_ENDPOINTS, *state, *count));
    let ejections = balancer.ejections.iter();
    let ejections = ejections.map(|(cause, count)| (&families::BALANCER_EJECTIONS, *cause, *count));
    let [own, others] = balancer.zones;
    endpoints.chain(ejections).chain([
        (&families::BALANCER_WITHHELD, "", balancer.withheld),
        (&families::BALANCER_PANICS, "", balancer.panics),
        (&families::BALANCER_ZONES, "own", own),
        (&families::BALANCER_ZONES, "other", others),
    ])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_added_up() {
        let metrics = Metrics::new(1, 700, &[]);
        metrics.balancers(|| {
            let balancer = |i: u32| Balancer {
                service: format!("default/s{i}:80").into(),
                endpoints: vec![("usable", 2)],
                panics: 1,
                ..Balancer::default()
            };
            (0..200).map(balancer).collect()
        });
        let text = metrics.render();
        assert!(
            text.contains("tulle_balancer_endpoints{service=\"default/s0:80\",state=\"usable\"} 2"),
            "{text}"
        );
        let lines = text.lines().filter(|line| line.starts_with("tulle_balancer_panics_total{service"));
        let shown = lines.count();
        assert!(shown > 3 && shown < 100, "{shown}");
        let rest = format!("tulle_balancer_panics_total{{overflow=\"true\"}} {}", 200 - shown);
        assert!(text.contains(&rest), "{rest}\n{text}");
        assert!(text.contains("tulle_metrics_limited 1"));
    }

    #[test]
    fn what_a_service_has_counted_that_is_forgotten_stays_in_the_sum() {
        let metrics = Metrics::new(1, 700, &[]);
        let now: Arc<Mutex<Vec<(u32, u64)>>> = Arc::default();
        let read = Arc::clone(&now);
        metrics.balancers(move || {
            let balancer = |(i, panics): &(u32, u64)| Balancer {
                service: format!("default/s{i}:80").into(),
                endpoints: vec![("usable", 2)],
                panics: *panics,
                ..Balancer::default()
            };
            read.lock().iter().map(balancer).collect()
        });
        let sums = |services: Vec<(u32, u64)>| {
            *now.lock() = services;
            let text = metrics.render();
            let of = |series: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(series));
                line.map(|value| value.trim().parse::<u64>().unwrap()).unwrap_or_default()
            };
            let counted = of("tulle_balancer_panics_total{overflow=\"true\"}");
            (counted, of("tulle_balancer_endpoints{state=\"usable\",overflow=\"true\"}"))
        };
        // These take all the room.
        let full: Vec<_> = (0..200).map(|i| (i, 0)).collect();
        let with = |more: &[(u32, u64)]| [&full[..], more].concat();
        let (none, shown) = sums(full.clone());
        assert_eq!(none, 0);
        assert_eq!(sums(with(&[(300, 5), (301, 1)])), (6, shown + 4));
        assert_eq!(sums(with(&[(301, 2)])), (7, shown + 2), "300 is forgotten");
        assert_eq!(sums(with(&[(300, 1), (301, 2)])), (8, shown + 4), "it is back, from zero");
        assert_eq!(
            sums(with(&[(300, 1), (301, 1)])),
            (9, shown + 4),
            "301 was forgotten and is back meanwhile"
        );
        assert_eq!(sums(full.clone()), (9, shown));
    }
}
