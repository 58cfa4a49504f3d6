//! Where a request goes.
//!
//! Decides, for one request to one service, which rule of which route applies, and which of the rule's backends
//! takes it. [`Table`] is compiled when routes arrive; a match looks at hash maps and a tree of path elements, takes
//! time in proportion to the host and path alone, and allocates nothing. It must never do I/O, know an endpoint or
//! read a clock; randomness is handed in. Called by `forward/outbound.rs` and by other programs.
//!
//! The order of precedence is Gateway API's (`HTTPRoute.spec.hostnames` and `.rules`, GEP-1722):
//! 1. the most specific host: an exact name, then the longest wildcard, then routes without host names;
//! 2. an exact path, then the longest prefix;
//! 3. the older route, which is the order in which they are given, then the earlier rule.
//!
//! A request that no rule of the most specific host takes goes on to the less specific ones.

mod host;
mod paths;
mod table;

pub use host::{Hostname, InvalidHostname};
pub use table::{Backend, Match, PathMatch, Route, RouteRule, Routes, Rule, Table};

#[cfg(test)]
mod tests;
