use super::*;
use crate::id::TrustDomain;
use crate::key::PrivateKey;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn web() -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", "web").unwrap()
}

fn tokens() -> JoinTokens {
    JoinTokens::generate().unwrap()
}

/// Header and claims as given, signed by `tokens`' key as ES256 whatever the header says.
fn signed(tokens: &JoinTokens, header: &str, claims: &serde_json::Value) -> String {
    let message =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let pair = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        tokens.key.pkcs8(),
    )
    .unwrap();
    let signature = pair.sign(&aws_lc_rs::rand::SystemRandom::new(), message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

fn claims() -> serde_json::Value {
    serde_json::json!({
        "sub": web(), "services": ["web"], "exp": x509::seconds(now()) + 3600, "jti": "1", "aud": "tulle",
    })
}

fn changed(key: &str, value: serde_json::Value) -> serde_json::Value {
    let mut claims = claims();
    claims[key] = value;
    claims
}

fn without(key: &str) -> serde_json::Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(key);
    claims
}

const ES256: &str = r#"{"alg":"ES256","typ":"JWT"}"#;

#[test]
fn a_token_goes_round() {
    let tokens = tokens();
    let services = ["web".to_owned(), "web-admin".to_owned()];
    let token = tokens.mint(&web(), &services, HOUR, now()).unwrap();
    let claims = tokens.verify(&token, now()).unwrap();
    assert_eq!((claims.sub, claims.services), (web(), services.to_vec()));
    assert_eq!(claims.exp, now() + HOUR);
    let again = tokens.mint(&web(), &services, HOUR, now()).unwrap();
    assert_ne!(tokens.verify(&again, now()).unwrap().jti, claims.jti);
    let stored = JoinTokens::from_pem(&tokens.key().to_pem()).unwrap();
    assert!(stored.verify(&format!(" {token}\r\n"), now()).is_ok());
    assert!(tokens.verify(&signed(&tokens, ES256, &self::claims()), now()).is_ok());
    let list = changed("aud", serde_json::json!(["other", "tulle"]));
    assert!(tokens.verify(&signed(&tokens, ES256, &list), now()).is_ok());
}

#[test]
fn times_have_a_minute_of_leeway() {
    let tokens = tokens();
    let token = tokens.mint(&web(), &[], HOUR, now()).unwrap();
    assert!(tokens.verify(&token, now() + HOUR + LEEWAY).is_ok());
    let error = tokens.verify(&token, now() + HOUR + LEEWAY + Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, TokenError::Expired(_)), "{error}");
    assert!(["token create", "clocks"].iter().all(|word| error.to_string().contains(word)), "{error}");
    let seconds = x509::seconds(now());
    let later = |by: u64| signed(&tokens, ES256, &changed("nbf", (seconds + by).into()));
    assert!(tokens.verify(&later(60), now()).is_ok());
    let error = tokens.verify(&later(61), now()).unwrap_err();
    assert!(matches!(error, TokenError::NotYetValid(_)) && error.to_string().contains("clocks"), "{error}");
    let far = signed(&tokens, ES256, &changed("exp", u64::MAX.into()));
    assert!(tokens.verify(&far, now()).is_ok(), "no overflow");
}

#[test]
fn forgeries_are_refused() {
    let tokens = tokens();
    let other = self::tokens();
    let good = tokens.mint(&web(), &[], HOUR, now()).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let public = tokens.key.public_key();
    let hmac = |secret: &[u8]| {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(secret))
            .unwrap()
    };
    let admin =
        URL_SAFE_NO_PAD.encode(changed("sub", "spiffe://cluster.local/ns/shop/sa/admin".into()).to_string());

    for (token, expected) in [
        (other.mint(&web(), &[], HOUR, now()).unwrap(), TokenError::Signature),
        (format!("{}.{}.{}", parts[0], admin, parts[2]), TokenError::Signature),
        (format!("{}.{}.", parts[0], parts[1]), TokenError::Signature),
        (format!("{none}.{}.", parts[1]), TokenError::Algorithm),
        (format!("{none}.{}.{}", parts[1], parts[2]), TokenError::Algorithm),
        (hmac(&public), TokenError::Algorithm),
        (hmac(tokens.key.point()), TokenError::Algorithm),
        (signed(&tokens, r#"{"alg":"RS256"}"#, &claims()), TokenError::Algorithm),
        (signed(&tokens, r#"{"alg":"ES384"}"#, &claims()), TokenError::Algorithm),
        (signed(&tokens, r#"{"alg":"es256"}"#, &claims()), TokenError::Algorithm),
        (signed(&tokens, ES256, &changed("aud", "istio-ca".into())), TokenError::Audience),
        (signed(&tokens, ES256, &without("aud")), TokenError::Audience),
    ] {
        assert_eq!(tokens.verify(&token, now()), Err(expected), "{token}");
    }
    for token in [
        signed(&tokens, r#"{"alg":"ES256","crit":["x"],"x":1}"#, &claims()),
        signed(&tokens, ES256, &without("exp")),
        signed(&tokens, ES256, &without("sub")),
        signed(&tokens, ES256, &without("jti")),
        signed(&tokens, ES256, &changed("exp", "soon".into())),
        signed(&tokens, ES256, &changed("exp", (-1).into())),
        signed(&tokens, ES256, &changed("services", "web".into())),
        String::new(),
        "..".into(),
        "a.b".into(),
        "a.b.c.d".into(),
        format!("{good}."),
        "é.é.é".into(),
        "a".repeat(MAX_TOKEN + 1),
    ] {
        assert!(matches!(tokens.verify(&token, now()), Err(TokenError::Malformed(_))), "{token}");
    }
    let subject = signed(&tokens, ES256, &changed("sub", "admin".into()));
    assert!(matches!(tokens.verify(&subject, now()), Err(TokenError::Subject(_))));
}

#[test]
fn only_p256_signs_tokens() {
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let key = PrivateKey::from_der(p384.serialized_der()).unwrap();
    assert!(matches!(JoinTokens::new(key), Err(TokenError::Curve)));
}

#[test]
fn token_files() {
    let tokens = tokens();
    let token = tokens.mint(&web(), &[], HOUR, now()).unwrap();
    let pin = Pin::of_spki(b"root");
    let file = TokenFile::new(token.clone(), pin);
    assert_eq!(*file.to_text(), format!("{token}\n{pin}\n"));
    for text in [
        file.to_text().to_string(),
        format!("{token}\r\n{pin}"),
        format!("\u{feff}# of the shop\n\n  {token}  \n\n{pin}\n# end"),
    ] {
        assert_eq!(TokenFile::parse(&text).unwrap(), file);
    }
    assert_eq!(file.claims().unwrap().sub, web());
    for (text, word) in [
        (String::new(), "line 1"),
        (format!("{pin}\n{token}"), "line 1"),
        (token.clone(), "line 2"),
        (format!("{token}\nsha256:00"), "line 2"),
    ] {
        let error = TokenFile::parse(&text).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains(&token), "{error}");
    }
    let error = TokenFile::read(Path::new("/nowhere/token")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/token"), "{error}");
    assert!(TokenFile::new("a.b.c".into(), pin).claims().is_err());
}

#[test]
fn debug_and_errors_show_no_secret() {
    let tokens = tokens();
    let token = tokens.mint(&web(), &[], HOUR, now()).unwrap();
    let file = TokenFile::new(token.clone(), Pin::of_spki(b"root"));
    let mut shown = format!("{tokens:?}{tokens:#?}{file:?}");
    for bad in [format!("{token}x"), format!("x{token}"), token.replace('.', "..")] {
        let error = tokens.verify(&bad, now()).unwrap_err();
        shown.push_str(&format!("{error}{error:?}"));
    }
    for part in token.split('.') {
        assert!(!shown.contains(part), "{shown}");
    }
    for line in tokens.key().to_pem().lines().filter(|line| !line.starts_with('-')) {
        assert!(!shown.contains(line));
    }
}

#[test]
fn a_token_that_is_good_for_one_time_says_so_and_no_other_does() {
    let tokens = tokens();
    let once = tokens.mint_once(&web(), &[], HOUR, now()).unwrap();
    assert!(tokens.verify(&once, now()).unwrap().once && claims_of(&once).unwrap().once);
    let often = tokens.mint(&web(), &[], HOUR, now()).unwrap();
    assert!(!tokens.verify(&often, now()).unwrap().once && !claims_of(&often).unwrap().once);
    // Whoever adds an audience makes it no more of a token.
    let both = changed("aud", serde_json::json!(["tulle", "tulle-once"]));
    assert!(tokens.verify(&signed(&tokens, ES256, &both), now()).unwrap().once);
}
