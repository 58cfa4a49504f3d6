use http::Method;

use super::*;
use crate::cluster::testing::ApiServer;

fn stored(certificate: &str) -> Stored {
    Stored {
        authorities: "authorities".to_owned(),
        authority_key: Zeroizing::new("authority's key".to_owned()),
        certificate: certificate.to_owned(),
        key: Zeroizing::new("key".to_owned()),
    }
}

#[tokio::test]
async fn the_secret_is_made_once_by_its_name_and_then_written_where_it_was_read() {
    let server = ApiServer::start();
    let [first, second] = [(); 2].map(|()| Cluster::new(server.client(), "tulle-system"));
    assert_eq!(first.read().await, Ok(None));
    first.write(&stored("a"), None).await.unwrap();
    // A POST is authorized for all names or for none.
    assert_eq!(server.asked(&Method::POST, "secrets"), 0);
    second.write(&stored("b"), None).await.unwrap_err();
    let (read, version) = second.read().await.unwrap().unwrap();
    assert_eq!(read, stored("a"));
    second.write(&stored("b"), Some(&version)).await.unwrap();
    first.write(&stored("c"), Some(&version)).await.unwrap_err();
    assert_eq!(first.read().await.unwrap().unwrap().0, stored("b"));
}
