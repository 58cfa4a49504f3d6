//! `tulle token create | list | revoke`: what a workload outside Kubernetes joins the mesh with.
//!
//! Signs with the control plane's own key, read from its state folder, or in a cluster from the Secret that all replicas share: who may read that key may let
//! workloads in. What was made, and what is revoked, is kept in a book beside the key, which a running control plane reads. The demo
//! mints its workloads' tokens here too, and these are in no book.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use tulle_certs::token::{Claims, JoinTokens, TokenFile, claims_of};
use tulle_certs::{Pin, SpiffeId, TrustDomain, pem};
use tulle_control_plane::ca;
use tulle_control_plane::ca::ledger::Ledger;
use tulle_control_plane::cluster::Secret;
use tulle_control_plane::object::{NamespacedName, is_label};
use tulle_control_plane::tap::printable;

use crate::output::Format;
use crate::{check, duration, output};

const EXAMPLES: &str = "\
Examples:
  tulle token create --state-dir state --workload-identity shop/orders \\
      --service orders --out orders.token
  tulle token create --state-dir state --workload-identity shop/payments-v2 \\
      --service payments --service payments-v2 --lifetime 1h
  tulle token create --state-dir state --workload-identity shop/orders --once
  tulle token create --workload-identity shop/orders --service orders    in a cluster

The file is for the proxy's --identity-token-file. Its first line is the token,
a secret until it expires; its second line pins the control plane's root.

Exit status:
  0  the token was written
  1  the state folder or Secret, the identity or the file cannot be used; standard
     error says why
  2  wrong arguments";

const REVOKE_EXAMPLES: &str = "\
Examples:
  tulle token revoke --state-dir state orders.token
  tulle token revoke --namespace tulle-system 6f1c2a7be09d4c5f8a3e21d07b94c6f8

Nobody joins with it from then on, and no certificate that was obtained with it is
renewed: peers take such a certificate until it has run out, which is when the
workload is out of the mesh. What it alone has granted cannot be registered any
more. The control plane takes it up within seconds, all replicas do.

Exit status:
  0  it is revoked
  1  it is not, or the book cannot be read or written; standard error says why
  2  wrong arguments";

const LIST_EXAMPLES: &str = "\
Examples:
  tulle token list --state-dir state
  tulle token list -o json

Tokens that `tulle token create` made, for 30 days after they have expired. Those
that are revoked stay; of these only the ID is left by then.

Exit status: 0 listed; 1 the book cannot be read, standard error says why; 2 wrong arguments";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a join token.
    #[command(after_help = EXAMPLES)]
    Create(CreateArgs),
    /// List join tokens, and say which are revoked.
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Let nobody join with a token any more, nor stay in the mesh for longer than the certificate lasts.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArgs),
}

/// Where the control plane keeps what it must not lose.
#[derive(Debug, clap::Args)]
pub(crate) struct Kept {
    /// The control plane's state folder. Not said: the Secret of a control plane in a Kubernetes cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["namespace", "context", "kubeconfig"])]
    state_dir: Option<PathBuf>,
    /// The control plane's namespace.
    #[arg(long, short, value_name = "NAME", default_value = "tulle-system")]
    namespace: String,
    /// The context of the kubeconfig. By default the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig. By default as kubectl finds it.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// Where that is, as it is asked.
enum Place<'a> {
    Folder(&'a Path),
    Cluster(Box<Secret>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    kept: Kept,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    kept: Kept,
    /// The token's file, the token itself, or its ID, which `tulle token list` says.
    #[arg(value_name = "TOKEN")]
    token: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    kept: Kept,
    /// Who the workload becomes: its namespace and service account.
    #[arg(long, value_name = "NAMESPACE/SERVICE-ACCOUNT")]
    workload_identity: String,
    /// A service that the workload may register itself for; may be repeated.
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<String>,
    /// How long a workload may join with it.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
    lifetime: Duration,
    /// The first who joins with it is the last. What has joined renews its certificate without it; started anew, it needs another token.
    #[arg(long)]
    once: bool,
    /// The mesh's trust domain. By default the one that the control plane's root was made for.
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// Write it here, readable by you alone, in place of standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Whom to let in.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// None: the one of the root.
    pub(crate) trust_domain: Option<&'a str>,
    /// `<namespace>/<service account>`.
    pub(crate) identity: &'a str,
    pub(crate) services: &'a [String],
    pub(crate) lifetime: Duration,
    /// It is good for one time.
    pub(crate) once: bool,
}

/// The `token` verb.
///
/// # Errors
/// As [`create()`] and [`write()`]; a book that cannot be read or written.
pub(crate) fn run(command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create(arguments) => make(arguments),
        TokenCommand::List(arguments) => list(arguments),
        TokenCommand::Revoke(arguments) => revoke(arguments),
    }
}

fn make(arguments: &CreateArgs) -> Result<()> {
    let runtime = runtime()?;
    let place = runtime.block_on(arguments.kept.place())?;
    let request = Request {
        trust_domain: arguments.trust_domain.as_deref(),
        identity: &arguments.workload_identity,
        services: &arguments.services,
        lifetime: arguments.lifetime,
        once: arguments.once,
    };
    let (token, pin) = mint(&request, || runtime.block_on(place.signer()))?;
    let claims = claims_of(&token)?;
    let noting = place.change(|ledger| Some(ledger.with_made(&claims, SystemTime::now())));
    // The token is good all the same, and can be revoked by its file.
    if let Err(error) = runtime.block_on(noting) {
        eprintln!("warning: `tulle token list` will not know this token: {error:#}");
    }
    // Where nothing is issued there is no root to pin: the token is shown beside a certificate from elsewhere.
    let text = match pin {
        Some(pin) => TokenFile::new(token, pin).to_text().to_string(),
        None => token + "\n",
    };
    match &arguments.out {
        Some(path) => write_text(&text, path),
        None => output::print(text.trim_end()),
    }
}

fn list(arguments: &ListArgs) -> Result<()> {
    let ledger = runtime()?.block_on(async { arguments.kept.place().await?.change(|_| None).await })?;
    match arguments.output {
        Format::Json => output::print_json(&ledger),
        Format::Table => output::print(&table(&ledger, SystemTime::now())),
    }
}

fn revoke(arguments: &RevokeArgs) -> Result<()> {
    let (jti, claims) = named(&arguments.token)?;
    let now = SystemTime::now();
    let change = |ledger: Ledger| Some(ledger.with_revoked(&jti, claims.as_ref(), now));
    let before = runtime()?.block_on(async { arguments.kept.place().await?.change(change).await })?;
    let found = before.entries().find(|(known, _)| *known == jti).map(|(_, entry)| entry);
    let whose = match (&claims, found) {
        (Some(claims), _) => format!(" of {}", claims.sub),
        (None, Some(entry)) if !entry.identity.is_empty() => format!(" of {}", printable(&entry.identity)),
        (None, Some(_)) => String::new(),
        (None, None) => {
            ", of which nothing else is known: it stays in the book until somebody takes it out".to_owned()
        }
    };
    match found.and_then(|entry| entry.revoked) {
        Some(_) => output::print(&format!("the join token {jti}{whose} was revoked before")),
        None => output::print(&format!("revoked the join token {jti}{whose}")),
    }
}

/// The ID of a token that is told by its file, by itself or by its ID, and what it says, where that is known.
fn named(token: &str) -> Result<(String, Option<Claims>)> {
    let path = Path::new(token);
    let text = match path.is_file() {
        true => pem::read_file(path).with_context(|| format!("cannot read {}", path.display()))?.to_string(),
        false => token.to_owned(),
    };
    let text = text.trim();
    if !text.contains('.') {
        if !is_id(text) || path.is_file() {
            bail!(
                "`{token}` is neither the file of a join token, nor one, nor the ID of one (`tulle token list`)"
            );
        }
        return Ok((text.to_owned(), None));
    }
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let claims = claims_of(first.unwrap_or_default()).with_context(
        || "what was given is no join token; give its file, the token, or its ID (`tulle token list`)",
    )?;
    // Nobody has verified what it says, and it is kept and shown.
    if !is_id(&claims.jti) || !claims.services.iter().all(|name| is_label(name)) {
        bail!(
            "what was given is no join token that `tulle token create` has made; give its ID (`tulle token list`)"
        );
    }
    Ok((claims.jti.clone(), Some(claims)))
}

/// Whether a text may be the ID of a token.
fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")
}

// === impl Kept ===

impl Kept {
    /// Where it is. Asked once: a credential plugin of the kubeconfig may ask who sits at the terminal.
    async fn place(&self) -> Result<Place<'_>> {
        if let Some(state_dir) = &self.state_dir {
            return Ok(Place::Folder(state_dir));
        }
        let client = check::client(self.context.as_deref(), self.kubeconfig.as_deref()).await;
        let (client, _) = client.map_err(|why| anyhow!("no --state-dir is given, and {why}"))?;
        Ok(Place::Cluster(Box::new(Secret::new(client, &self.namespace))))
    }
}

// === impl Place ===

impl Place<'_> {
    /// Changes the book, and says what it was.
    async fn change(&self, change: impl Fn(Ledger) -> Option<Ledger> + Send + Sync) -> Result<Ledger> {
        Ok(match self {
            Self::Folder(state_dir) => ca::change_ledger_of(state_dir, change).await?,
            Self::Cluster(secret) => ca::change_ledger_in(&**secret, change).await?,
        })
    }

    /// What tokens are made with.
    async fn signer(&self) -> Result<Signer> {
        match self {
            Self::Folder(state_dir) => Signer::of(state_dir),
            Self::Cluster(secret) => {
                let stored = secret.stored_tokens().await.context("no join token can be signed")?;
                Ok(Signer { tokens: stored.tokens, pin: Some(stored.pin), made_for: stored.trust_domain })
            }
        }
    }
}

/// A line for each token.
fn table(ledger: &Ledger, now: SystemTime) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut rows = vec![["ID", "IDENTITY", "SERVICES", "EXPIRES", "STATE"].map(str::to_owned)];
    for (jti, entry) in ledger.entries() {
        let expires = match entry.expires {
            Some(expires) if expires > now => format!("in {}", long(expires - now)),
            Some(expires) => format!("{} ago", long(now - expires)),
            None => "unknown".to_owned(),
        };
        let state = match (entry.revoked, entry.used, entry.expires) {
            (Some(revoked), ..) => format!("revoked {} ago", long(now.saturating_sub(revoked))),
            (None, Some(used), _) => format!("used {} ago", long(now.saturating_sub(used))),
            (None, None, Some(expires)) if expires <= now => "expired".to_owned(),
            (None, None, _) if entry.once => "valid once".to_owned(),
            (None, None, _) => "valid".to_owned(),
        };
        let or = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        // Who may write there may write anything.
        let [jti, identity, services] = [jti, &entry.identity, &entry.services.join(",")].map(printable);
        rows.push([jti, or(identity), or(services), expires, state]);
    }
    let widths: Vec<usize> =
        (0..5).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// In the largest unit that matters.
fn long(seconds: u64) -> String {
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Mints a token with the key in the state folder.
///
/// # Errors
/// No key there, or one that others may read; a name that is none; a trust domain that is not the root's.
pub(crate) fn create(state_dir: &Path, request: &Request<'_>) -> Result<TokenFile> {
    let (token, pin) = mint(request, || Signer::of(state_dir))?;
    let no_root = || format!("{} is of a control plane that issues no certificates", state_dir.display());
    Ok(TokenFile::new(token, pin.with_context(no_root)?))
}

/// What signs tokens.
struct Signer {
    tokens: JoinTokens,
    /// Of the root that their bearers will know the control plane by, if that issues certificates.
    pin: Option<Pin>,
    /// The trust domain that the root was made for, if it says.
    made_for: Option<TrustDomain>,
}

// === impl Signer ===

impl Signer {
    /// What a state folder holds.
    fn of(state_dir: &Path) -> Result<Self> {
        let unusable = || {
            format!(
                "no join token can be signed with {} (is it the control plane's state folder?)",
                state_dir.display()
            )
        };
        if let Some(tokens) = ca::stored_signer(state_dir).with_context(unusable)? {
            return Ok(Self { tokens, pin: None, made_for: None });
        }
        let stored = ca::stored_tokens(state_dir).with_context(unusable)?;
        Ok(Self { tokens: stored.tokens, pin: Some(stored.pin), made_for: stored.trust_domain })
    }
}

/// A token, and the pin of the root that its bearer will know the control plane by, if that issues certificates.
fn mint(request: &Request<'_>, signer: impl FnOnce() -> Result<Signer>) -> Result<(String, Option<Pin>)> {
    let account = NamespacedName::parse(request.identity).with_context(|| {
        format!(
            "--workload-identity `{}`: expected <namespace>/<service account>, such as shop/orders, in lower-case letters, digits and `-`",
            request.identity
        )
    })?;
    if let Some(bad) = request.services.iter().find(|name| !is_label(name)) {
        bail!(
            "--service `{bad}`: expected the name of a Service: lower-case letters, digits and `-`, at most 63"
        );
    }
    let asked = request.trust_domain.map(TrustDomain::new).transpose().context("--trust-domain")?;
    let Signer { tokens, pin, made_for } = signer()?;
    let domain = match (asked, made_for) {
        (Some(asked), Some(made_for)) if asked != made_for => {
            bail!(
                "--trust-domain `{asked}`: the control plane's root was made for `{made_for}`; leave the flag out"
            )
        }
        (Some(domain), _) | (None, Some(domain)) => domain,
        (None, None) => TrustDomain::default(),
    };
    let id = SpiffeId::new(&domain, &account.namespace, &account.name).context("--workload-identity")?;
    let (services, lifetime, now) = (request.services, request.lifetime, SystemTime::now());
    let token = match request.once {
        true => tokens.mint_once(&id, services, lifetime, now)?,
        false => tokens.mint(&id, services, lifetime, now)?,
    };
    Ok((token, pin))
}

/// Writes the token file with mode 0600, in place of what was there.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write(file: &TokenFile, path: &Path) -> Result<()> {
    write_text(&file.to_text(), path)
}

fn write_text(text: &str, path: &Path) -> Result<()> {
    // A new file every time: an old one may be readable by others, or a link.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    out.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn claims(jti: &str, expires: u64) -> Claims {
        let sub = SpiffeId::new(&TrustDomain::default(), "shop", "web").unwrap();
        let exp = UNIX_EPOCH + Duration::from_secs(expires);
        Claims { sub, services: vec!["web".into(), "api".into()], exp, jti: jti.into(), once: false }
    }

    #[test]
    fn a_token_is_named_by_its_file_by_itself_or_by_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let id = SpiffeId::new(&TrustDomain::default(), "shop", "web").unwrap();
        let minted = JoinTokens::generate().unwrap();
        let minted = minted.mint(&id, &[], Duration::from_secs(60), SystemTime::now()).unwrap();
        let file = folder.path().join("a.token");
        fs::write(&file, format!("# of web\n{minted}\nsha256:00\n")).unwrap();
        let (by_file, claims) = named(file.to_str().unwrap()).unwrap();
        assert_eq!(claims.unwrap().sub, id);
        let (by_token, claims) = named(&minted).unwrap();
        assert_eq!((&by_token, claims.unwrap().jti), (&by_file, by_file.clone()));
        assert_eq!(named(&by_file).unwrap(), (by_file, None));
        // Of somebody's own making, with what a terminal would obey in it.
        let forged = r#"{"sub": "spiffe://cluster.local/ns/shop/sa/web", "exp": 1, "jti": "a\u001b[2J"}"#;
        let forged = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(forged));
        let error = format!("{:#}", named(&forged).unwrap_err());
        assert!(error.contains("token create") && !error.contains('\u{1b}'), "{error}");
        fs::write(&file, "nothing").unwrap();
        for bad in ["", "a b", "a.b.c", "../x", file.to_str().unwrap()] {
            let error = format!("{:#}", named(bad).unwrap_err());
            assert!(error.contains("token list"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_line_for_each_token() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let ledger = Ledger::default()
            .with_made(&claims("a", 100_000), at(0))
            .with_made(&claims("b", 900), at(0))
            .with_revoked("c", None, at(940))
            .with_made(&Claims { once: true, ..claims("d", 100_000) }, at(0))
            .with_used(&Claims { once: true, ..claims("e", 100_000) }, at(700))
            .unwrap();
        let expected = "\
ID IDENTITY SERVICES EXPIRES STATE
a spiffe://cluster.local/ns/shop/sa/web web,api in 27 h valid
b spiffe://cluster.local/ns/shop/sa/web web,api 1 min ago expired
c - - unknown revoked 1 min ago
d spiffe://cluster.local/ns/shop/sa/web web,api in 27 h valid once
e spiffe://cluster.local/ns/shop/sa/web web,api in 27 h used 5 min ago";
        let shown = table(&ledger, at(1000));
        let squeezed = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(squeezed.collect::<Vec<_>>().join("\n"), expected);
        let foreign = r#"{"d\u001b[2J": {"identity": "\u001b]0;x\u0007", "revoked": 1}}"#;
        let foreign = Ledger::read(Some(foreign), "").unwrap();
        assert!(!table(&foreign, at(1000)).contains('\u{1b}'));
        let column = shown.find("IDENTITY").unwrap();
        assert!(shown.lines().skip(1).all(|line| line.as_bytes()[column - 1] == b' '), "{shown}");
    }
}
