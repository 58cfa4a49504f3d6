//! Rotation of the mesh's root, where it is the control plane's own: a new one takes the old one's place, and no connection is refused meanwhile.
//!
//! - `record`: how far it is, as it is kept, with what the next step needs;
//! - `machine`: what the next step is;
//! - `agreement`: who is waited for, by what the replicas say of themselves and their proxies;
//! - `issuing`: which authority is in use;
//! - `keeper`: carries the steps out, and warns of certificates that end (`expiry`);
//! - `status`: how all of that is told;
//! - `repair`: a new root at once, where the old one has ended.
//!
//! All but `keeper` is decided without I/O. What a step needs is kept before anything of it is told, and a step is only taken from the record that was read: of two
//! control planes one takes it. Only the lease's holder tries, in a folder the one control plane that has locked it.

mod agreement;
mod expiry;
mod issuing;
mod keeper;
mod kept;
mod machine;
mod record;
mod repair;
mod status;

use super::store::{Kept, REPORTS};

pub use self::agreement::{Lacks, Report, Reports, Waited};
pub use self::keeper::{Keeper, Progress, Replicas};
pub use self::kept::NotNow;
pub use self::machine::{Event, Root};
pub use self::record::{Former, Record, State, Wanted, Why};
pub use self::repair::{Need, RepairError, Repaired, repair_folder};
pub use self::status::Status;

pub(in crate::ca) use self::issuing::{InEffect, in_effect, kept_record};
pub(crate) use self::repair::{Anew, admit, domain_of, made_anew, need};

/// What the replicas say, as it is kept. What cannot be read is as if nobody had said anything.
pub(in crate::ca) fn reports(kept: &Kept) -> Reports {
    kept.get(REPORTS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
