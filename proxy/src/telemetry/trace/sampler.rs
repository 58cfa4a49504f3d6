//! Which traces are recorded.
//!
//! Pure, and decided once per request: what the request's headers say holds where the sampler is parent-based, else the sampler
//! itself, by the trace's ID, so that every proxy and every SDK with the same ratio comes to the same for one trace.

use opentelemetry::trace::TraceId;

use super::context::Heard;

/// `OTEL_TRACES_SAMPLER`: which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// What the headers say holds; the rest of it is for traces that begin here.
    pub parent_based: bool,
    /// The part of traces, 0 to 1.
    pub ratio: f64,
}

/// What a policy says of sampling; what it leaves open the next place says, and after all of them the [`Sampler`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Whether what the headers say holds.
    pub parent_based: Option<bool>,
    /// Of a million traces so many.
    pub millionths: Option<u32>,
}

// === impl Sampling ===

impl Sampling {
    /// Whether nothing is said.
    #[inline]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// What is said here, and where nothing is, there.
    #[inline]
    #[must_use]
    pub fn over(self, general: Self) -> Self {
        Self {
            parent_based: self.parent_based.or(general.parent_based),
            millionths: self.millionths.or(general.millionths),
        }
    }
}

// === impl Sampler ===

impl Sampler {
    /// A hundredth of the traces that begin here.
    pub const DEFAULT: Self = Self { parent_based: true, ratio: 0.01 };

    /// As OpenTelemetry names it; `ratio` is that of samplers by ratio. `None`: there is no such sampler.
    pub fn named(name: &str, ratio: f64) -> Option<Self> {
        let (parent_based, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => ratio,
            _ => return None,
        };
        Some(Self { parent_based, ratio })
    }

    /// The sampler for what a policy says this of.
    #[must_use]
    pub fn said(self, said: Sampling) -> Self {
        Self {
            parent_based: said.parent_based.unwrap_or(self.parent_based),
            ratio: said.millionths.map_or(self.ratio, |millionths| f64::from(millionths) / 1e6),
        }
    }

    /// Whether a request is recorded whose headers said this, in the trace of that ID.
    pub fn samples(self, heard: &Heard, trace: TraceId) -> bool {
        match heard.sampled {
            _ if heard.debug => true,
            Some(sampled) if self.parent_based => sampled,
            Some(_) | None => self.takes(trace),
        }
    }

    /// As OpenTelemetry's SDKs do it: by the lower 63 bits of the ID's last 8 bytes.
    fn takes(self, trace: TraceId) -> bool {
        if self.ratio >= 1.0 {
            return true;
        }
        let bound = (self.ratio.max(0.0) * (1_u64 << 63) as f64) as u64;
        let low = u128::from_be_bytes(trace.to_bytes()) as u64;
        low >> 1 < bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(sampled: Option<bool>) -> Heard {
        Heard { sampled, ..Heard::default() }
    }

    #[test]
    fn each_sampler_does_what_its_name_says() {
        let (low, high) = (TraceId::from(1_u128), TraceId::from(u128::from(u64::MAX)));
        // By what the headers say, nothing, no and yes: of a trace with a low ID and of one with a high ID.
        for (name, none, no, yes) in [
            ("always_on", [true, true], [true, true], [true, true]),
            ("always_off", [false, false], [false, false], [false, false]),
            ("traceidratio", [true, false], [true, false], [true, false]),
            ("parentbased_always_on", [true, true], [false, false], [true, true]),
            ("parentbased_always_off", [false, false], [false, false], [true, true]),
            ("parentbased_traceidratio", [true, false], [false, false], [true, true]),
        ] {
            let sampler = Sampler::named(name, 0.5).unwrap();
            let of = |said| [low, high].map(|trace| sampler.samples(&heard(said), trace));
            assert_eq!([of(None), of(Some(false)), of(Some(true))], [none, no, yes], "{name}");
        }
        for name in ["", "parentbased_", "jaeger_remote", "ALWAYS_ON", "parentbased_parentbased_always_on"] {
            assert_eq!(Sampler::named(name, 0.5), None, "{name}");
        }
    }

    #[test]
    fn what_a_policy_leaves_open_the_next_says() {
        let sampler = Sampler { parent_based: true, ratio: 0.25 };
        let half = Sampling { millionths: Some(500_000), ..Sampling::default() };
        let alone = Sampling { parent_based: Some(false), millionths: Some(0) };
        assert_eq!(sampler.said(Sampling::default()), sampler);
        assert_eq!(sampler.said(half), Sampler { parent_based: true, ratio: 0.5 });
        assert_eq!(sampler.said(half.over(alone)), Sampler { parent_based: false, ratio: 0.5 });
        assert_eq!(sampler.said(alone.over(half)), Sampler { parent_based: false, ratio: 0.0 });
    }

    #[test]
    fn what_is_debugged_is_always_recorded() {
        let heard = Heard { sampled: Some(true), debug: true, ..Heard::default() };
        assert!(Sampler::named("always_off", 0.0).unwrap().samples(&heard, TraceId::from(9)));
    }

    #[test]
    fn a_ratio_takes_that_part_and_a_greater_one_all_that_a_smaller_one_takes() {
        let ids: Vec<TraceId> = (0..10_000_u128)
            .map(|n| TraceId::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
            .collect();
        let takes = |ratio: f64| -> Vec<bool> {
            let sampler = Sampler { parent_based: true, ratio };
            ids.iter().map(|trace| sampler.samples(&heard(None), *trace)).collect()
        };
        let count = |taken: &[bool]| taken.iter().filter(|taken| **taken).count();
        assert_eq!((count(&takes(0.0)), count(&takes(1.0))), (0, ids.len()));
        let (few, many) = (takes(0.1), takes(0.4));
        assert!((900..1100).contains(&count(&few)), "{}", count(&few));
        assert!((3800..4200).contains(&count(&many)), "{}", count(&many));
        assert!(few.iter().zip(&many).all(|(few, many)| !few || *many));
    }

    #[test]
    fn the_sdks_come_to_the_same() {
        use opentelemetry::trace::SpanKind;
        use opentelemetry_sdk::trace::{SamplingDecision, ShouldSample as _};
        for ratio in [0.0, 0.001, 0.3, 0.999] {
            let theirs = opentelemetry_sdk::trace::Sampler::TraceIdRatioBased(ratio);
            let ours = Sampler { parent_based: false, ratio };
            for n in 0..1000_u128 {
                let trace = TraceId::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
                let result = theirs.should_sample(None, trace, "", &SpanKind::Client, &[], &[]);
                let theirs = result.decision == SamplingDecision::RecordAndSample;
                assert_eq!(ours.samples(&heard(None), trace), theirs, "{ratio} {trace}");
            }
        }
    }
}
