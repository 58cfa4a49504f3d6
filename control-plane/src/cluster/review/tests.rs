use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use prometheus::Opts;
use serde_json::{Value, json};

use super::*;
use crate::cluster::testing::{ApiServer, Failure};

/// A token as Kubernetes projects it; `number` tells one from the next.
fn token(audience: &str, pod: bool, number: u32) -> String {
    let mut claims = json!({
        "aud": [audience], "jti": number.to_string(),
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "v"}},
    });
    if pod {
        claims["kubernetes.io"]["pod"] = json!({"name": "web-1", "uid": "u"});
    }
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// What the API server says of a good token.
fn status() -> Value {
    json!({
        "authenticated": true, "audiences": ["tulle"],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "extra": {POD_NAME: ["web-1"], POD_UID: ["u"]},
        },
    })
}

fn reviews(server: &Arc<ApiServer>) -> Reviews {
    Reviews::new(server.client(), IntCounterVec::new(Opts::new("reviews", "x"), &["outcome"]).unwrap())
}

fn web() -> Bearer {
    Bearer { namespace: "shop".into(), service_account: "web".into(), pod: "web-1".into() }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_api_server_vouches_for_is_its_pods_and_is_remembered_for_a_while() {
    let server = ApiServer::start();
    let reviews = reviews(&server);
    let good = token("tulle", true, 1);
    server.token(&good, status());
    assert_eq!(reviews.review(&good, None).await, Ok(web()));
    assert_eq!(reviews.review(&good, None).await, Ok(web()));
    assert_eq!(server.asked(&Method::POST, "tokenreviews"), 1);
    tokio::time::sleep(REMEMBERED).await;
    // The pod was deleted meanwhile.
    server.token(&good, json!({"authenticated": false, "error": "pod web-1 not found"}));
    let error = reviews.review(&good, None).await.unwrap_err();
    assert!(matches!(&error, ReviewError::Refused(why) if why.contains("not found")), "{error}");
    for (outcome, times) in [("accepted", 1), ("remembered", 1), ("refused", 1), ("unavailable", 0)] {
        assert_eq!(reviews.outcomes.with_label_values(&[outcome]).get(), times, "{outcome}");
    }
}

#[tokio::test]
async fn what_the_api_server_does_not_say_is_not_believed() {
    let mut other_audience = status();
    other_audience["audiences"] = json!(["api"]);
    let mut no_audience = status();
    no_audience["audiences"] = Value::Null;
    let mut no_pod = status();
    no_pod["user"]["extra"] = json!({});
    let mut no_uid = status();
    no_uid["user"]["extra"] = json!({POD_NAME: ["web-1"]});
    let mut a_user = status();
    a_user["user"]["username"] = json!("alice");
    let mut half_an_account = status();
    half_an_account["user"]["username"] = json!("system:serviceaccount:shop");
    let cases = [
        (other_audience, "audience"),
        (no_audience, "audience"),
        (no_pod, "bound to no pod"),
        (no_uid, "bound to no pod"),
        (a_user, "no service account"),
        (half_an_account, "no service account"),
        (json!({"authenticated": false}), "not valid"),
        (json!({"authenticated": false, "error": "token is expired"}), "expired"),
        (json!({}), "not valid"),
    ];
    let server = ApiServer::start();
    let reviews = reviews(&server);
    for (number, (status, word)) in cases.into_iter().enumerate() {
        let token = token("tulle", true, u32::try_from(number).unwrap());
        server.token(&token, status.clone());
        let error = reviews.review(&token, None).await.unwrap_err();
        assert!(matches!(&error, ReviewError::Refused(why) if why.contains(word)), "{status}: {error}");
        assert!(!error.to_string().contains(&token));
    }
    assert!(reviews.remembered.known.lock().is_empty(), "no refusal is taken for an acceptance");
}

#[tokio::test(start_paused = true)]
async fn a_bad_token_shown_again_and_again_asks_the_api_server_once_in_a_while() {
    let server = ApiServer::start();
    let reviews = reviews(&server);
    let (bad, other) = (token("tulle", true, 1), token("tulle", true, 2));
    server.token(&bad, json!({"authenticated": false, "error": "pod web-1 not found"}));
    server.token(&other, status());
    for _ in 0..100 {
        let error = reviews.review(&bad, None).await.unwrap_err();
        assert!(matches!(&error, ReviewError::Refused(why) if why.contains("not found")), "{error}");
    }
    assert_eq!(server.asked(&Method::POST, "tokenreviews"), 1);
    assert_eq!(reviews.review(&other, None).await, Ok(web()), "another token is asked about");
    // The API server had not heard of the pod yet.
    server.token(&bad, status());
    tokio::time::sleep(REFUSED).await;
    assert_eq!(reviews.review(&bad, None).await, Ok(web()));
    assert_eq!(reviews.outcomes.with_label_values(&["refused"]).get(), 100);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (memory, now) = (Memory::lasting(REFUSED), Instant::now());
    let hash = |number: usize| {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        hash
    };
    for number in 0..MOST + 10 {
        memory.put(hash(number), number, now);
    }
    assert!(memory.known.lock().len() <= MOST);
    assert_eq!(memory.get(&hash(MOST + 9), now), Some(MOST + 9));
    assert_eq!(memory.get(&hash(MOST + 9), now + REFUSED), None);
}

#[tokio::test]
async fn what_cannot_be_meant_for_us_does_not_reach_the_api_server() {
    let server = ApiServer::start();
    let reviews = reviews(&server);
    let long = format!("{}{}", token("tulle", true, 1), "x".repeat(LONGEST));
    for (token, word) in [
        (token("api", true, 1), "audience"),
        (token("tulle", false, 1), "bound to no pod"),
        ("rubbish".to_owned(), "malformed"),
        (String::new(), "malformed"),
        (long, "longer"),
    ] {
        let error = reviews.review(&token, None).await.unwrap_err();
        assert!(matches!(&error, ReviewError::Refused(why) if why.contains(word)), "{word}: {error}");
    }
    assert_eq!(server.asked(&Method::POST, "tokenreviews"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_no_refusal_and_nothing_is_remembered_of_it() {
    let server = ApiServer::start();
    let reviews = reviews(&server);
    let good = token("tulle", true, 1);
    server.token(&good, status());
    for (failure, word) in [
        (Failure::Silence, "did not answer"),
        (Failure::Status(503), "refuses"),
        (Failure::Status(403), "service account the rights"),
        (Failure::Status(429), "refuses"),
        (Failure::Garbage, "could not be asked"),
    ] {
        server.fail(move |_, _| Some(failure));
        let error = reviews.review(&good, None).await.unwrap_err();
        assert!(
            matches!(&error, ReviewError::Unavailable(why) if why.contains(word)),
            "{failure:?}: {error}"
        );
        assert!(error.to_string().contains("ask again"), "{error}");
    }
    server.mend();
    assert_eq!(reviews.review(&good, None).await, Ok(web()));
}

#[tokio::test(start_paused = true)]
async fn who_asks_with_forged_tokens_holds_up_nobody_else() {
    let server = ApiServer::start();
    let reviews = Arc::new(reviews(&server));
    let client = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
    server.fail(|_, _| Some(Failure::Silence));
    let mut flood = Vec::new();
    for number in 0..100 {
        let (reviews, forged) = (Arc::clone(&reviews), token("tulle", true, number));
        flood.push(tokio::spawn(async move { reviews.review(&forged, client(1)).await }));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(server.asked(&Method::POST, "tokenreviews"), EACH);
    server.mend();
    let good = token("tulle", true, 1000);
    server.token(&good, status());
    assert_eq!(reviews.review(&good, client(2)).await, Ok(web()));
    for one in flood {
        assert!(matches!(one.await.unwrap(), Err(ReviewError::Unavailable(_))));
    }
    assert!(reviews.asking.lock().is_empty(), "nobody is counted who does not ask");
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_turn_is_not_of_the_time_of_the_api_server() {
    let server = ApiServer::start();
    let reviews = Arc::new(reviews(&server));
    server.fail(|_, _| Some(Failure::Silence));
    for number in 0..AT_ONCE {
        let number = u32::try_from(number).unwrap();
        let (reviews, client) = (Arc::clone(&reviews), Some(IpAddr::from(number.to_be_bytes())));
        let token = token("tulle", true, number);
        tokio::spawn(async move { reviews.review(&token, client).await });
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    server.mend();
    let good = token("tulle", true, 1000);
    server.token(&good, status());
    assert_eq!(reviews.review(&good, None).await, Ok(web()), "as soon as one of the others has timed out");
}

#[tokio::test]
async fn join_tokens_are_not_taken_for_tokens_of_kubernetes() {
    let tokens = tulle_certs::token::JoinTokens::generate().unwrap();
    let id = tulle_certs::SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    let join = tokens.mint(&id, &[], Duration::from_secs(60), std::time::SystemTime::now()).unwrap();
    assert!(!is_of_kubernetes(&join));
    assert!(is_of_kubernetes(&token("api", false, 1)), "also one that is refused, for the reason to be told");
}
