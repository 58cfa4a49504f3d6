//! What balancers have counted: read when metrics are scraped, by port of a service.

use super::budget::{Budget, Group};
use super::families::{self, Family};
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
        let budget = self.budget.clone();
        self.at_scrape(move |samples| show(&budget, &read(), samples));
    }
}

fn show(budget: &Budget, balancers: &[Balancer], samples: &mut Vec<Sample>) {
    let mut overflow: Vec<Sample> = Vec::new();
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
            add(&mut overflow, sample);
        }
    }
    samples.append(&mut overflow);
}

/// One more, or more of one that is among them.
pub(super) fn add(sums: &mut Vec<Sample>, sample: Sample) {
    let known = sums.iter_mut().find(|one| one.family == sample.family && one.labels == sample.labels);
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
}
