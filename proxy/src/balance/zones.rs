//! How much of a port's requests the proxy's own zone takes (R24).
//!
//! All of them, as long as none of its endpoints gets more than its cap, in proportion to what each would get without
//! zones. While its endpoints are too slow, too busy or refuse too much, more and more goes elsewhere, and comes back once
//! that is well over, more slowly: so it does not swing. No cap is exceeded elsewhere either.
//!
//! The share is kept to by counting ([`Owed`]): were each request drawn by itself, a zone at its cap would be over it as often as not.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::group::Seen;
use super::settings::{WarmUp, Zones};
use super::standing::LOCAL;

/// All, as [`Group`](super::Group) keeps it.
pub(super) const WHOLE: f64 = 4_294_967_296.0;
/// What goes elsewhere in addition for each look at a zone that is over its limit, and at one that is twice so or worse.
const OUT: [f64; 2] = [0.01, 0.05];
/// What comes back with each look at one that is not any more …
const BACK: f64 = 0.01;
/// … by this much.
const WELL: f64 = 0.8;
/// Some is always left, so that it is seen when it serves again.
const MOST: f64 = 0.95;
/// Answers in the memory of which a share can be told.
const ENOUGH: f64 = 5.0;
/// What is left of that memory at each look.
const KEPT: f64 = 0.9;

/// How much of the own zone's part goes elsewhere.
#[derive(Debug, Default)]
pub(super) struct Spill {
    part: f64,
    answers: f64,
    refused: f64,
}

/// What the own zone should have had of the requests so far, and has not; below 0 if it has had more. Of one request it is
/// [`WHOLE`], and less than that in either direction as long as each pick is sent where it says before the next is made. What is picked again
/// (no room there, or it failed) is counted as it is sent, and so is what no pick has placed, a session's request say.
#[derive(Debug, Default)]
pub(super) struct Owed(AtomicI64);

/// A whole request.
const ONE: i64 = WHOLE as i64;
/// What is owed at most in either direction: what one zone could not take, or sessions have taken for hours, is not made up for all at once.
const MOST_OWED: i64 = 16 * ONE;

// === impl Owed ===

impl Owed {
    /// Whether the own zone takes the next request, of which it gets `share` of [`WHOLE`]: by chance as far as what it is owed
    /// leaves it open, so that requests which differ by turns are not parted by kind. `random`: uniformly so. Nothing is counted yet.
    pub(super) fn takes(&self, share: u64, random: u64) -> bool {
        let chance = (random >> 32) as i64;
        part(share).map_or(share > 0, |share| self.0.load(Relaxed) + share > chance)
    }

    /// A request is sent, to the own zone or elsewhere, where that gets `share`.
    pub(super) fn sent(&self, share: u64, local: bool) {
        let Some(share) = part(share) else { return };
        let owed = share - if local { ONE } else { 0 };
        let next = |before: i64| Some((before + owed).clamp(-MOST_OWED, MOST_OWED));
        // Never fails: `next` always answers.
        let _ = self.0.fetch_update(Relaxed, Relaxed, next);
    }
}

/// A share, unless it is none or all: that is the usual case, and not even counted.
fn part(share: u64) -> Option<i64> {
    i64::try_from(share).ok().filter(|share| (1..ONE).contains(share))
}

// === impl Spill ===

impl Spill {
    /// Looks at the own zone's endpoints, every tenth of a second or so.
    pub(super) fn settle<'a>(
        &mut self,
        zones: &Zones,
        local: impl Iterator<Item = Seen<'a>>,
        answers: u32,
        refused: u32,
        now: u64,
    ) {
        self.answers = self.answers * KEPT + f64::from(answers);
        self.refused = self.refused * KEPT + f64::from(refused);
        let (mut n, mut known, mut latency, mut in_flight) = (0.0_f64, 0.0_f64, 0.0, 0.0);
        for Seen { load, .. } in local {
            n += 1.0;
            in_flight += f64::from(load.in_flight());
            if let Some(one) = load.latency(now) {
                known += 1.0;
                latency += one;
            }
        }
        let over = |value: f64, limit: f64| if limit > 0.0 { value / limit } else { 0.0 };
        let limit = zones.latency.map_or(0.0, |latency| latency.as_nanos() as f64);
        let refused = if self.answers >= ENOUGH { 100.0 * self.refused / self.answers } else { 0.0 };
        let worst = over(latency / known.max(1.0), limit)
            .max(over(in_flight / n.max(1.0), f64::from(zones.in_flight)))
            .max(over(refused, f64::from(zones.refused_percent)));
        if worst >= 1.0 {
            self.part = (self.part + OUT[0] + (OUT[1] - OUT[0]) * (worst - 1.0).min(1.0)).min(MOST);
        } else if worst < WELL {
            self.part = (self.part - BACK).max(0.0);
        }
    }
}

/// The part that the own zone gets of what goes to these endpoints.
pub(super) fn local_share<'a>(
    zones: &Zones,
    spill: &Spill,
    members: impl Iterator<Item = Seen<'a>>,
    now: u64,
    growth: WarmUp,
) -> f64 {
    let (mut local, mut all) = (0.0, 0.0);
    for Seen { standing, weight, .. } in members {
        let flags = standing.flags();
        let weight = f64::from(weight) * standing.share(flags, now, growth);
        all += weight;
        if flags & LOCAL != 0 {
            local += weight;
        }
    }
    if all <= 0.0 {
        return 0.0;
    }
    let fair = local / all;
    let cap = f64::from(zones.maximum_load_percent.max(100)) / 100.0;
    let preferred = (fair * cap).min(1.0);
    let least = (1.0 - (1.0 - fair) * cap).max(0.0);
    (preferred * (1.0 - spill.part)).max(least)
}
