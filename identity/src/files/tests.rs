use std::os::unix::fs::symlink;

use super::*;
use crate::testing::{HOUR, Heard, Remembers, authority, creds, failed, id, taken};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn files(&self) -> Files {
        let [cert, key, bundle] = ["cert", "key", "roots"].map(|name| self.path(name));
        Files { cert, key, bundle, wanted: None }
    }

    fn write(&self, creds: &Creds) {
        write(self.0.path(), creds);
    }
}

fn write(folder: &Path, creds: &Creds) {
    let chain: String = creds.chain().iter().rev().map(|der| pem::encode_certificate(der)).collect();
    fs::write(folder.join("cert"), chain).unwrap();
    fs::write(folder.join("key"), &*creds.key().to_pem()).unwrap();
    fs::write(folder.join("roots"), creds.bundle().to_pem()).unwrap();
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let (place, authority) = (Place::new(), authority());
    let now = SystemTime::now();
    let load = |files: &Files| files.load(None, now).unwrap_err().to_string();
    assert!(load(&place.files()).contains("cert"));
    let good = creds(&authority, "web", HOUR);
    place.write(&good);
    assert_eq!(place.files().load(None, now).unwrap().unwrap().id(), &id("web"));
    assert!(place.files().load(Some(&good), now).unwrap().is_none(), "nothing new");

    let other = Files { wanted: Some(id("orders")), ..place.files() };
    let error = load(&other);
    assert!(error.contains("sa/web") && error.contains("sa/orders") && error.contains("cert"), "{error}");
    for (name, text, words) in [
        ("key", "", ["key", "PRIVATE KEY"]),
        ("roots", "-----BEGIN CERTIFICATE-----\n", ["roots", "line 1"]),
        ("cert", "nothing", ["cert", "CERTIFICATE"]),
    ] {
        place.write(&good);
        fs::write(place.path(name), text).unwrap();
        let error = load(&place.files());
        assert!(words.iter().all(|word| error.contains(word)), "{name}: {error}");
    }
    // Each good, of two identities.
    place.write(&good);
    fs::write(place.path("key"), &*creds(&authority, "web", HOUR).key().to_pem()).unwrap();
    assert!(load(&place.files()).contains("not issued for this private key"));
    fs::write(place.path("roots"), crate::testing::authority().bundle().to_pem()).unwrap();
    assert!(load(&place.files()).contains("tls_unknown_root"));
}

#[test]
fn what_has_expired_in_its_file_is_told() {
    let (place, authority) = (Place::new(), authority());
    let short = creds(&authority, "web", Duration::from_secs(10));
    place.write(&short);
    let later = SystemTime::now() + HOUR;
    let error = place.files().load(Some(&short), later).unwrap_err().to_string();
    assert!(error.contains("expired") && error.contains("cert"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_half_written_identity_is_waited_for_and_the_whole_one_taken() {
    let (place, authority) = (Place::new(), authority());
    let [first, second] = [(); 2].map(|()| creds(&authority, "web", HOUR));
    place.write(&first);
    let (mut follower, mut heard) = Remembers::new();
    let files = place.files();
    let following = tokio::spawn(async move { files.follow(&mut follower).await });
    assert_eq!(taken(&mut heard).await.chain(), first.chain());

    // The key is still the old one.
    place.write(&second);
    fs::write(place.path("key"), &*first.key().to_pem()).unwrap();
    tokio::time::sleep(HALF_WRITTEN / 2).await;
    assert!(heard.try_recv().is_err(), "not a word yet");
    place.write(&second);
    assert_eq!(taken(&mut heard).await.chain(), second.chain());

    // And one that stays so is told.
    fs::write(place.path("key"), &*first.key().to_pem()).unwrap();
    fs::write(place.path("roots"), format!("{}\n", second.bundle().to_pem())).unwrap();
    place.write(&first);
    fs::write(place.path("key"), &*second.key().to_pem()).unwrap();
    assert!(failed(&mut heard).await.contains("not issued for this private key"));
    tokio::time::sleep(SAY_AGAIN / 2).await;
    assert!(heard.try_recv().is_err(), "the same is not told all the time");
    following.abort();
}

#[tokio::test(start_paused = true)]
async fn files_behind_a_link_that_is_exchanged_are_taken_at_once() {
    let (place, authority) = (Place::new(), authority());
    let versions = ["one", "two"].map(|name| {
        let folder = place.path(name);
        fs::create_dir(&folder).unwrap();
        let creds = creds(&authority, "web", HOUR);
        write(&folder, &creds);
        (folder, creds)
    });
    // As the kubelet does it.
    symlink(&versions[0].0, place.path("..data")).unwrap();
    for name in ["cert", "key", "roots"] {
        symlink(Path::new("..data").join(name), place.path(name)).unwrap();
    }
    let (mut follower, mut heard) = Remembers::new();
    let files = place.files();
    let following = tokio::spawn(async move { files.follow(&mut follower).await });
    assert_eq!(taken(&mut heard).await.chain(), versions[0].1.chain());
    symlink(&versions[1].0, place.path("..new")).unwrap();
    fs::rename(place.path("..new"), place.path("..data")).unwrap();
    assert_eq!(taken(&mut heard).await.chain(), versions[1].1.chain());
    following.abort();
}

#[tokio::test(start_paused = true)]
async fn at_the_start_what_is_wrong_is_told_at_once() {
    let place = Place::new();
    let (mut follower, mut heard) = Remembers::new();
    let files = place.files();
    let following = tokio::spawn(async move { files.follow(&mut follower).await });
    assert!(failed(&mut heard).await.contains("cert"));
    place.write(&creds(&authority(), "web", HOUR));
    assert!(matches!(heard.recv().await, Some(Heard::Creds(_))));
    following.abort();
}
