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
        let version = version.unwrap_or_default();
        let bytes = name.bytes().chain([0xff]).chain(version.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        self.names += 1;
        self.hash = self.hash.wrapping_add(mix(hash));
    }
}

/// Sums of the plain hashes of similar names would be similar.
fn mix(mut z: u64) -> u64 {
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
        let hash = 0x74d6_d471_6b27_045b;
        assert_eq!(digest(&[("a/a", Some("v1")), ("a/b", None)]), Digest { names: 2, hash });
        assert_eq!(digest(&[("a/b", None), ("a/a", Some("v1"))]), Digest { names: 2, hash });
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
