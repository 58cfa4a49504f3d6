//! The hash by which a proxy and its control plane see whether they agree, the same on both sides and in every version.

/// Names, each with the version that it has or none, in no order.
///
/// Not against an adversary: whoever can choose names and versions is believed anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// How many names.
    pub names: u32,
    /// The sum of their hashes, as [`TypeView::hash`](crate::v1::TypeView::hash) says.
    pub hash: u64,
}

// === impl Digest ===

impl Digest {
    /// Adds a name; `None`: there is no such resource.
    pub fn add(&mut self, name: &str, version: Option<&str>) {
        let hash = absorb(absorb(0, name.as_bytes()), version.unwrap_or_default().as_bytes());
        self.names += 1;
        self.hash = self.hash.wrapping_add(hash);
    }
}

/// The length, then each eight bytes.
fn absorb(hash: u64, bytes: &[u8]) -> u64 {
    let begun = mix(hash ^ bytes.len() as u64);
    bytes.chunks(8).fold(begun, |hash, chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        mix(hash ^ u64::from_le_bytes(word))
    })
}

/// splitmix64's step.
fn mix(hash: u64) -> u64 {
    let mut z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(names: &[(&str, Option<&str>)]) -> Digest {
        let mut digest = Digest::default();
        names.iter().for_each(|(name, version)| digest.add(name, *version));
        digest
    }

    #[test]
    fn it_is_that_of_the_wire_whatever_the_order() {
        let orders = ("default/orders", Some("8b1a9953c4611296a827abf8c47804d7"));
        let hash = 0x8398_af27_238d_9e34;
        assert_eq!(digest(&[orders, ("a/b", None)]), Digest { names: 2, hash });
        assert_eq!(digest(&[("a/b", None), orders]), Digest { names: 2, hash });
    }

    #[test]
    fn another_version_name_or_absence_is_another_hash() {
        let all = [
            digest(&[]),
            digest(&[("a/a", None)]),
            digest(&[("a/a", Some("v1"))]),
            digest(&[("a/a", Some("v2"))]),
            digest(&[("a/av1", None)]),
            digest(&[("a/a", Some("v1")), ("a/b", Some("v2"))]),
            digest(&[("a/a", Some("v2")), ("a/b", Some("v1"))]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
    }
}
