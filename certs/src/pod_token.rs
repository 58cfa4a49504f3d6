//! The token that Kubernetes projects into a pod (`serviceAccountToken`), read *without being verified*.
//!
//! Whether it holds, only the API server can say (`TokenReview`). Its bearer reads here what name to ask for; who reviews it reads here what
//! speaks against it already. It is a secret as join tokens are.

use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::token;

/// A token that says that it is of a service account of Kubernetes.
pub struct PodToken {
    /// The compact JWT; wiped when dropped.
    pub token: Zeroizing<String>,
    claims: Claims,
}

/// The claims, as far as they matter here.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: ServiceAccount,
    #[serde(default)]
    pod: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct ServiceAccount {
    name: String,
}

/// One or a list (RFC 7519 §4.1.3).
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
    #[default]
    None,
}

// === impl PodToken ===

impl PodToken {
    /// Of a file's content or a header's; `None`: it is no such token, whatever else it may be.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let claims = token::unverified(text)?;
        Some(Self { token: Zeroizing::new(text.to_owned()), claims })
    }

    /// Whom it would make its bearer in `domain`.
    pub fn id(&self, domain: &TrustDomain) -> Result<SpiffeId, IdError> {
        let Kubernetes { namespace, serviceaccount, .. } = &self.claims.kubernetes;
        SpiffeId::new(domain, namespace, &serviceaccount.name)
    }

    /// Whether it is meant for `audience`.
    pub fn is_for(&self, audience: &str) -> bool {
        match &self.claims.aud {
            Audiences::One(one) => one == audience,
            Audiences::Several(several) => several.iter().any(|one| one == audience),
            Audiences::None => false,
        }
    }

    /// Whether it ends with a pod.
    pub fn is_bound_to_a_pod(&self) -> bool {
        self.claims.kubernetes.pod.is_some()
    }
}

impl fmt::Debug for PodToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kubernetes { namespace, serviceaccount, .. } = &self.claims.kubernetes;
        write!(f, "PodToken({namespace}/{})", serviceaccount.name)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_projected_token_names_its_service_account() {
        let bound = r#""kubernetes.io": {"namespace": "shop", "pod": {"name": "web-1", "uid": "u"}, "serviceaccount": {"name": "web", "uid": "v"}}"#;
        for audience in [r#""tulle""#, r#"["other", "tulle"]"#] {
            let text = token(&format!(r#"{{"aud": {audience}, {bound}, "iss": "https://kubernetes"}}"#));
            let read = PodToken::parse(&format!("{text}\n")).unwrap();
            assert_eq!(*read.token, text);
            assert_eq!(
                read.id(&TrustDomain::default()).unwrap().to_string(),
                "spiffe://cluster.local/ns/shop/sa/web"
            );
            assert!(read.is_for("tulle") && !read.is_for("api") && read.is_bound_to_a_pod());
            assert!(!format!("{read:?}").contains(&text[4..12]), "it is a secret");
        }
        let unbound = token(
            r#"{"aud": "api", "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web"}}}"#,
        );
        let unbound = PodToken::parse(&unbound).unwrap();
        assert!(!unbound.is_for("tulle") && !unbound.is_bound_to_a_pod());
    }

    #[test]
    fn other_tokens_are_none() {
        let join = token(
            r#"{"sub": "spiffe://cluster.local/ns/shop/sa/web", "aud": "tulle", "exp": 1, "jti": "x"}"#,
        );
        for other in [
            "",
            "x",
            "a.b.c",
            "a.b",
            &join,
            &format!("{join}.x"),
            &token("[]"),
            &token(r#"{"kubernetes.io": {}}"#),
        ] {
            assert!(PodToken::parse(other).is_none(), "{other}");
        }
    }
}
