//! What is taken of limits: read when metrics are scraped, by port of a service.

use super::budget::{Budget, Group};
use super::families;
use super::{Metrics, Sample, balancers};

/// Of one limit of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitUse {
    /// As [`RequestLabels::service`](super::RequestLabels::service).
    pub service: Box<str>,
    /// As the policy spells it.
    pub limit: &'static str,
    pub used: u32,
    /// Who has no place yet.
    pub waiting: usize,
}

// === impl Metrics ===

impl Metrics {
    /// Shows what `read` gives whenever metrics are scraped.
    pub fn limits(&self, read: impl Fn() -> Vec<LimitUse> + Send + Sync + 'static) {
        let budget = self.budget.clone();
        self.at_scrape(move |samples| show(&budget, &read(), samples));
    }
}

fn show(budget: &Budget, uses: &[LimitUse], samples: &mut Vec<Sample>) {
    let mut overflow = Vec::new();
    for LimitUse { service, limit, used, waiting } in uses {
        let key = [service.as_bytes(), b"\0", limit.as_bytes()].concat();
        let admitted = budget.admit(Group::LimitUses, &key, 0);
        let values = [(&families::LIMIT_USED, f64::from(*used)), (&families::LIMIT_WAITING, *waiting as f64)];
        for (family, value) in values {
            let labels = match admitted {
                true => [service, *limit, ""],
                false => ["", *limit, "true"],
            };
            let sample = Sample { family, labels: labels.map(str::to_owned).to_vec(), value };
            match admitted {
                true => samples.push(sample),
                false => balancers::add(&mut overflow, sample),
            }
        }
    }
    samples.append(&mut overflow);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_shown_and_what_there_is_no_room_for_is_added_up() {
        let metrics = Metrics::new(1, 700, &[]);
        metrics.limits(|| {
            let one = |i: u32| LimitUse {
                service: format!("default/s{i}:80").into(),
                limit: "requests",
                used: 2,
                waiting: 3,
            };
            (0..500).map(one).collect()
        });
        let text = metrics.render();
        let shown = |family: &str| text.matches(&format!("{family}{{service=\"default/s")).count();
        let count = shown("tulle_limit_used");
        assert!(count > 100 && count < 400 && shown("tulle_limit_waiting") == count, "{count}");
        assert!(text.lines().count() < 800, "{text}");
        for (family, each) in [("tulle_limit_used", 2), ("tulle_limit_waiting", 3)] {
            let rest = format!("{family}{{limit=\"requests\",overflow=\"true\"}} {}", each * (500 - count));
            assert!(text.contains(&rest), "{rest}\n{text}");
        }
        assert!(text.contains("tulle_metrics_limited 1"));
    }
}
