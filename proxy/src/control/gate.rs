//! Which `InboundPolicy` and `EgressPolicy` may be put in force: the rule that leaves no hole while a workload becomes known.
//!
//! Rules for a workload exist from its registration on. Before, the control plane answers with the mesh's mode, with no rules where it reads a
//! folder, which would let everybody in, or in a cluster with one that lets nobody in, until it knows the Pod; and with what holds for the
//! namespace, which may let everything out. So while there is something to register, a policy counts only if
//! - this process has registered: what was known of the workload before may be another's, or an older life's; and
//! - it names every port that was registered, or says that it is for a workload that is registered: a policy from before the
//!   registration, or from after its loss, does not.
//!
//! Whatever is held back changes nothing: the last policy in force stays, and without one nobody is let in or out. Asked by
//! [`super::apply`]; told of registrations by [`super::ads`].

use crate::policy::InboundSpec;

/// What keeps a policy back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeldBack {
    #[error("it came before this workload was registered")]
    NotRegistered,
    #[error(
        "it does not name port {0}, which this workload has registered: the control plane has lost the registration, or another proxy registers under the same --workload"
    )]
    PortUnknown(u16),
    #[error(
        "it is for a workload that is not registered, which this one is: the control plane has lost the registration"
    )]
    Unregistered,
}

/// Holds policies back until they are about this proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// To be registered, each once.
    ports: Vec<u16>,
    registered: bool,
}

// === impl Gate ===

impl Gate {
    /// For a proxy that registers these ports; with none, every policy counts.
    pub fn new(mut ports: Vec<u16>) -> Self {
        ports.sort_unstable();
        ports.dedup();
        Self { ports, registered: false }
    }

    /// The control plane has taken the registration in. That holds for the life of the process: a control plane that
    /// goes away does not make the policy wrong.
    pub fn registered(&mut self) {
        self.registered = true;
    }

    /// # Errors
    /// Why the policy must not be put in force.
    pub fn check(&self, policy: &InboundSpec) -> Result<(), HeldBack> {
        self.after_registration()?;
        let known = |port: &u16| policy.ports.iter().any(|(known, _)| known == port);
        match self.ports.iter().find(|port| !known(port)) {
            None => Ok(()),
            Some(port) => Err(HeldBack::PortUnknown(*port)),
        }
    }

    /// The same of an `EgressPolicy`, which says whether it is for a workload that is `registered`.
    ///
    /// # Errors
    /// Why the policy must not be put in force.
    pub fn check_egress(&self, registered: bool) -> Result<(), HeldBack> {
        self.after_registration()?;
        if self.ports.is_empty() || registered { Ok(()) } else { Err(HeldBack::Unregistered) }
    }

    fn after_registration(&self) -> Result<(), HeldBack> {
        if self.ports.is_empty() || self.registered { Ok(()) } else { Err(HeldBack::NotRegistered) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PortPolicy;
    use crate::state::{Mode, ObjectName, Protocol};

    fn policy(ports: &[u16]) -> InboundSpec {
        let port = PortPolicy { protocol: Protocol::Http, mode: Mode::Strict };
        InboundSpec {
            workload: ObjectName::new("default", "orders"),
            mode: Mode::Permissive,
            ports: ports.iter().map(|number| (*number, port)).collect(),
            rules: Vec::new(),
            policies: Vec::new(),
            trust_domain: None,
            unspoken: Default::default(),
            rate_limits: Vec::new(),
            connection_ages: Vec::new(),
            access_logs: Vec::new(),
            samplings: Vec::new(),
            access_log: Default::default(),
            sampling: Default::default(),
            external: Vec::new(),
            authentications: Vec::new(),
        }
    }

    #[test]
    fn without_anything_to_register_every_policy_counts() {
        assert_eq!(Gate::new(Vec::new()).check(&policy(&[])), Ok(()));
    }

    #[test]
    fn a_policy_that_came_before_the_registration_is_held_back_even_if_it_names_the_ports() {
        let mut gate = Gate::new(vec![8080]);
        assert_eq!(gate.check(&policy(&[])), Err(HeldBack::NotRegistered));
        assert_eq!(gate.check(&policy(&[8080])), Err(HeldBack::NotRegistered));
        gate.registered();
        assert_eq!(gate.check(&policy(&[8080])), Ok(()));
    }

    #[test]
    fn a_policy_of_before_that_arrives_late_and_one_of_after_the_registrations_loss_are_held_back() {
        let mut gate = Gate::new(vec![8080, 9090, 8080]);
        gate.registered();
        assert_eq!(gate.check(&policy(&[])), Err(HeldBack::PortUnknown(8080)));
        assert_eq!(gate.check(&policy(&[8080])), Err(HeldBack::PortUnknown(9090)));
        assert_eq!(gate.check(&policy(&[8080, 9090, 1])), Ok(()));
    }
}
