//! Where a request goes, or a whole connection.
//!
//! Decides, for one request to one service, which rule of which route applies, which of the rule's backends
//! takes it, and what the rule's filters make of it. [`Table`] is compiled when routes arrive; a match looks at hash maps and a tree of path elements, takes
//! time in proportion to the host, the path and what few rules share it, and allocates nothing, but for a value of more than 256 bytes that does
//! not stand in the request as one piece, and for what regular expressions cache. Only those are tried one after the other. It must never do I/O, know an endpoint or
//! read a clock; randomness is handed in. Called by `forward/outbound.rs` and by other programs.
//!
//! The order of precedence is Gateway API's (`HTTPRoute.spec.hostnames` and `.rules`, `GRPCRoute.spec.rules.matches`):
//! 1. the most specific host: an exact name, then the longest wildcard, then routes without host names;
//! 2. an exact path, then regular expressions, then the longest prefix, then a gRPC method of any service;
//! 3. a match by method, then more header matches, then more query parameter matches;
//! 4. the older route, which is the order in which they are given, then the earlier rule.
//!
//! Where regular expressions come, Gateway API leaves open. Whoever writes one beside a prefix such as `/` means the
//! exception to it, which would never match if it came later; and an exact path is what somebody meant most exactly.
//! Among themselves none is more specific.
//!
//! A request that no rule of the most specific host takes goes on to the less specific ones, as it goes on to the next
//! path where headers, query or method do not match.

mod budget;
mod candidates;
mod condition;
mod cors;
mod filter;
mod host;
mod paths;
mod pattern;
mod requests;
mod retry;
mod session;
mod stream;
mod table;
mod token;

pub use budget::{Budget, BudgetSpec};
pub use condition::{Asked, Conditions, HeaderMatch, QueryMatch, ValueMatch, is_parameter};
pub use cors::{AllowedOrigin, Cors, CorsRequest, InPlace as CorsInPlace, InvalidOrigin, Listed};
pub use filter::{Filters, HeaderModifier, InvalidTarget, Mirror, PathModifier, Redirect, Rewrite, Scheme};
pub use host::{Hostname, InvalidHostname};
pub use pattern::{InvalidPattern, Pattern};
pub use requests::{Abort, FaultRule, Injected, MILLION, RequestPolicy, Requests};
pub use retry::{Causes, Retry};
pub use session::{Presented, Session, TokenPlace, cookie_path};
pub use stream::{StreamRoute, Streams};
pub use table::{
    Backend, Found, Invalid, Match, PathMatch, RequestMatch, Route, RouteKind, RouteRule, Routes, Rule,
    Table, TooLong, pick,
};
pub use token::{SessionKey, Token, backend_id};

#[cfg(test)]
mod tests;
