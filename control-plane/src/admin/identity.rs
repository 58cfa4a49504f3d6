//! `/identity`: the mesh's root and how far its rotation is; and asking for one, or that it be given up.
//!
//! Who may ask: callers on the control plane's own host, as for the other pages, and never a web page. In a cluster that is who may forward ports to its pods. Elsewhere
//! every user of the host gets that far, so that one must also show a token that the key of join tokens has signed for the control plane's own identity: who can
//! read the state folder can make it (`tulle identity rotate-root --state-dir`), and nobody else is ever given one.

use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tulle_certs::control_plane_id;

use super::{Pages, check_caller, json, text};
use crate::ca::Ca;
use crate::ca::rotation::{NotNow, Status, Wanted};

/// Where there is no root of ours.
const ELSEWHERE: &str = "identities come from elsewhere: their root is rotated where it was made\n";

/// What a POST to `path` asks for.
pub(super) fn wanted(path: &str) -> Option<Wanted> {
    match path {
        "/identity/rotate-root" => Some(Wanted::Rotation),
        "/identity/abort-rotation" => Some(Wanted::Abort),
        _ => None,
    }
}

impl Pages {
    /// How it is.
    pub(super) fn identity(&self) -> Response<Full<Bytes>> {
        let Some(ca) = self.trust.ca() else { return text(StatusCode::NOT_FOUND, ELSEWHERE) };
        let proxies = self.proxies.list().into_iter().map(|proxy| match proxy.node.is_empty() {
            true => proxy.identity,
            false => proxy.node,
        });
        let mut proxies: Vec<String> = proxies.collect();
        proxies.sort();
        let status = Status::of(ca, &self.rotation, &proxies, SystemTime::now());
        match serde_json::to_value(&status) {
            Ok(status) => json(&status),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// Notes what is asked for, and says how it is then. 202: it will be done.
    pub(super) async fn want<B>(
        &self,
        wanted: Wanted,
        request: &Request<B>,
        client: SocketAddr,
    ) -> Response<Full<Bytes>> {
        if *request.method() != Method::POST {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("POST"));
            return response;
        }
        if let Err(why) = check_caller(request, client) {
            return text(StatusCode::FORBIDDEN, why);
        }
        let Some(ca) = self.trust.ca() else { return text(StatusCode::CONFLICT, ELSEWHERE) };
        let now = SystemTime::now();
        if let Err(why) = check_proof(ca, request.headers(), now) {
            tracing::warn!(%client, why, "refused what somebody asked of the root");
            return text(StatusCode::UNAUTHORIZED, format!("{why}\n"));
        }
        let asked = ca.clone();
        // To its end, also if the caller goes away meanwhile.
        match tokio::spawn(async move { asked.want(wanted, now).await }).await {
            Ok(Ok(())) => {
                tracing::info!(%client, ?wanted, "somebody asks something of the root");
                let mut response = self.identity();
                *response.status_mut() = StatusCode::ACCEPTED;
                response
            }
            Ok(Err(why @ NotNow::Ca(_))) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
            Ok(Err(why)) => text(StatusCode::CONFLICT, format!("{why}\n")),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

/// Whether the caller shows that it may read what is kept, where it must.
fn check_proof(ca: &Ca, headers: &HeaderMap, now: SystemTime) -> Result<(), String> {
    if !ca.is_guarded() {
        return Ok(());
    }
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = shown.and_then(|value| value.split_once(' '));
    let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
    let Some(token) = token else {
        return Err(
            "show that you may read the state folder: `tulle identity rotate-root --state-dir`".to_owned()
        );
    };
    let claims = ca.tokens().verify(token, now).map_err(|error| error.to_string())?;
    if claims.sub != control_plane_id(ca.trust_domain()) {
        return Err(format!("the token is for {}, and not for the control plane itself", claims.sub));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tulle_certs::{SpiffeId, TrustDomain};

    use super::*;

    #[test]
    fn only_who_can_read_the_keys_may_change_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let (domain, now) = (TrustDomain::default(), SystemTime::now());
        let ca = Ca::open(dir.path(), &domain, now).unwrap();
        let minute = Duration::from_secs(60);
        let of = |id: &SpiffeId, at| ca.tokens().mint(id, &[], minute, at).unwrap();
        let web = SpiffeId::new(&domain, "shop", "web").unwrap();
        let own = control_plane_id(&domain);
        let strangers = tempfile::tempdir().unwrap();
        let stranger = Ca::open(strangers.path(), &domain, now).unwrap();
        let foreign = stranger.tokens().mint(&own, &[], minute, now).unwrap();
        for (authorization, admitted) in [
            (None, false),
            (Some(format!("Bearer {}", of(&own, now))), true),
            (Some(format!("bearer {}", of(&own, now))), true),
            (Some(of(&own, now)), false),
            (Some(format!("Bearer {}", of(&web, now))), false),
            (Some(format!("Bearer {}", of(&own, now - 10 * minute))), false),
            (Some(format!("Bearer {foreign}")), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = authorization {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(check_proof(&ca, &headers, now).is_ok(), admitted, "{headers:?}");
        }
    }
}
