//! What a verified token says of whoever sent a request.

use serde_json::{Map, Value};

/// The claims of one token (RFC 7519 §4) whose signature, times, issuer and audience have been verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    issuer: Box<str>,
    all: Map<String, Value>,
}

impl Claims {
    /// Of a token by `issuer`, which has been verified.
    pub fn verified(issuer: &str, all: Map<String, Value>) -> Self {
        Self { issuer: issuer.into(), all }
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Whom the token is about, where it says that.
    pub fn subject(&self) -> Option<&str> {
        self.all.get("sub")?.as_str()
    }

    /// What stands at the end of the way `path`, element by element.
    pub fn at<'p>(&self, path: impl IntoIterator<Item = &'p str>) -> Option<&Value> {
        let mut path = path.into_iter();
        let first = self.all.get(path.next()?)?;
        path.try_fold(first, |value, element| value.get(element))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_found_by_their_way() {
        let Value::Object(all) = json!({ "sub": "ann", "realm": { "roles": ["a"] } }) else { unreachable!() };
        let claims = Claims::verified("https://issuer", all);
        assert_eq!((claims.issuer(), claims.subject()), ("https://issuer", Some("ann")));
        assert_eq!(claims.at(["realm", "roles"]), Some(&json!(["a"])));
        assert_eq!((claims.at(["roles"]), claims.at(["sub", "x"]), claims.at([])), (None, None, None));
    }
}
