//! Clients of what a kubeconfig says; where that names a program for credentials (a plugin, `users[].user.exec`), with what the program says.
//!
//! kube's own client runs such a program itself: several times, without an end to its patience, and with its runtime standing still meanwhile. So it is run here: once, for as long as a
//! program may take, and never left behind. Who stops waiting for it ends it. A token that expires is asked for anew in time, with the same patience; a certificate serves for as long as
//! its client lives.
//!
//! What goes in and out is that of client-go's credential plugins (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins>).

use std::fmt;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::client::Body;
use kube::config::{AuthInfo, ExecConfig, ExecInteractiveMode};
use kube::{Client, Config};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;
use tower::BoxError;

use super::super::yaml::{self, Chunk};
use super::find::shown;

/// What a plugin may take that asks nobody anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// What one may take that may be asking who sits at the terminal.
const PATIENCE_WITH_PEOPLE: Duration = Duration::from_secs(120);
/// How often is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(10);
/// What is read of what it writes.
const LARGEST: u64 = 1 << 20;
/// A token is asked for anew so long before it expires.
const EARLY: SignedDuration = SignedDuration::from_secs(60);
/// After a failure it is not run again for so long: each request would wait for it.
const PAUSE: Duration = Duration::from_secs(5);

/// Why there is no client of a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The plugin gives no credentials.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A program is to be run in a way that nothing knows any more.
    #[error(
        "the kubeconfig's user has an `auth-provider` that runs a program ({0}), which kubectl has not known since 1.26: write `exec` in its place (the provider's command does, such as \
         `gcloud container clusters get-credentials`)"
    )]
    Provider(String),
    /// What is said cannot be used.
    #[error("{0} (look at the certificates and tokens of the kubeconfig)")]
    Unusable(#[source] Box<kube::Error>),
}

/// Why a plugin gives no credentials.
#[derive(Debug, thiserror::Error)]
#[error("the kubeconfig's credential plugin `{command}` {why}")]
pub struct PluginError {
    /// Without its arguments, which may be secrets.
    command: String,
    why: Why,
}

#[derive(Debug)]
enum Why {
    Start { error: io::Error, hint: Option<String> },
    Late(Duration),
    Failed(ExitStatus),
    Said(String),
}

/// The program that a kubeconfig names.
struct Plugin {
    exec: ExecConfig,
    /// What it may take; without one, as is usual.
    patience: Option<Duration>,
}

/// What it says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Credentials {
    /// As in RFC 3339.
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// A plugin that runs. Ended when this is dropped before it is over.
struct Running {
    child: Child,
    /// It leads a group of processes, which are ended with it.
    leads: bool,
    written: oneshot::Receiver<io::Result<Vec<u8>>>,
    is_over: bool,
}

/// A token that expires, and where the next one comes from.
struct Renewed {
    plugin: Plugin,
    held: Mutex<Held>,
}

struct Held {
    token: HeaderValue,
    expires: Timestamp,
    /// When the next was last asked for in vain, and why.
    failed: Option<(Instant, String)>,
}

/// The client of what a kubeconfig says.
///
/// # Errors
/// It cannot be used; the plugin that it names gives no credentials within its time.
pub async fn client(mut config: Config) -> Result<Client, ClientError> {
    let unusable = |error| ClientError::Unusable(Box::new(error));
    let auth = &mut config.auth_info;
    if let Some(provider) = &auth.auth_provider
        && provider.config.contains_key("cmd-path")
    {
        return Err(ClientError::Provider(shown(&provider.name)));
    }
    // What kube goes by before a plugin.
    let is_known = auth.auth_provider.is_some()
        || (auth.username.is_some() && auth.password.is_some())
        || auth.token.is_some()
        || auth.token_file.is_some();
    let Some(exec) = auth.exec.take().filter(|_| !is_known) else {
        return Client::try_from(config).map_err(unusable);
    };
    let plugin = Plugin { exec, patience: None };
    let credentials = plugin.run().await?;
    let expiring = credentials.expiring_token().map_err(|why| plugin.error(Why::Said(why)))?;
    credentials.put_into(auth, expiring.is_none()).map_err(|why| plugin.error(Why::Said(why)))?;
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config).map_err(unusable)?;
    Ok(match expiring {
        Some((token, expires)) => {
            let held = Mutex::new(Held { token, expires, failed: None });
            with_token(client, namespace, Renewed { plugin, held })
        }
        None => client,
    })
}

/// A client whose requests bring the token of the hour.
fn with_token(client: Client, namespace: String, renewed: Renewed) -> Client {
    let renewed = Arc::new(renewed);
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (client, renewed) = (client.clone(), Arc::clone(&renewed));
        async move {
            let token = renewed.token().await.map_err(BoxError::from)?;
            request.headers_mut().insert(AUTHORIZATION, token);
            client.send(request).await.map_err(BoxError::from)
        }
    });
    Client::new(service, namespace)
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.map_err(|_| "gives a token with characters that no token has".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

// === impl Plugin ===

impl Plugin {
    /// Runs it once, to its end or that of our patience.
    async fn run(&self) -> Result<Credentials, PluginError> {
        let may_ask = self.exec.interactive_mode != Some(ExecInteractiveMode::Never);
        let (at_input, at_errors) = (io::stdin().is_terminal(), io::stderr().is_terminal());
        let with_people = may_ask && (at_input || at_errors);
        let patience = self.patience.unwrap_or(if with_people { PATIENCE_WITH_PEOPLE } else { PATIENCE });
        let mut command = self.command(may_ask && at_input);
        // Who may ask at a terminal must stay in the group in front, or the terminal would stop it.
        let leads = !with_people;
        if leads {
            command.process_group(0);
        }
        let start = |error| Why::Start { error, hint: self.exec.install_hint.clone() };
        let mut running = Running::start(&mut command, leads).map_err(|error| self.error(start(error)))?;
        let ended = tokio::time::timeout(patience, running.end()).await;
        let ended = ended.map_err(|_| self.error(Why::Late(patience)))?;
        let (status, written) = ended.map_err(|error| self.error(Why::Said(format!("is lost: {error}"))))?;
        if !status.success() {
            return Err(self.error(Why::Failed(status)));
        }
        Credentials::read(&written).map_err(|why| self.error(Why::Said(why)))
    }

    /// `asks`: it may read what is typed. What it says to people is shown, as kubectl shows it.
    fn command(&self, asks: bool) -> Command {
        let exec = &self.exec;
        let mut command = Command::new(exec.command.as_deref().unwrap_or_default());
        command.args(exec.args.iter().flatten());
        for variable in exec.env.iter().flatten() {
            if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
                command.env(name, value);
            }
        }
        let mut spec = json!({"interactive": asks});
        if let Some(cluster) = exec.cluster.as_ref().filter(|_| exec.provide_cluster_info) {
            spec["cluster"] = serde_json::to_value(cluster).unwrap_or_default();
        }
        let told = json!({"kind": "ExecCredential", "apiVersion": exec.api_version, "spec": spec});
        command.env("KUBERNETES_EXEC_INFO", told.to_string());
        command.stdin(if asks { Stdio::inherit() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
    }

    fn error(&self, why: Why) -> PluginError {
        PluginError { command: shown(self.exec.command.as_deref().unwrap_or_default()), why }
    }
}

// === impl Why ===

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { error, hint: Some(hint) } => {
                write!(f, "cannot be started: {error} ({})", shown(hint))
            }
            Self::Start { error, hint: None } => {
                write!(f, "cannot be started: {error}; see that it is on the PATH")
            }
            Self::Late(patience) => {
                write!(
                    f,
                    "did not end within {patience:?}, and was ended: run it by hand, or `kubectl version`, to see what it waits for"
                )
            }
            Self::Failed(status) => {
                write!(f, "failed ({status}): what it says of it, it writes to standard error")
            }
            Self::Said(why) => f.write_str(why),
        }
    }
}

// === impl Credentials ===

impl Credentials {
    /// From an `ExecCredential`, in JSON or, as some plugins write it and client-go takes it, in YAML.
    fn read(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "writes what is not UTF-8".to_owned())?;
        let document: Option<Value> = match serde_json::from_str(text) {
            Ok(value) => Some(value),
            Err(_) => {
                let document = yaml::parse(Chunk { first_line: 1, text });
                document.map_err(|_| "writes what is not JSON".to_owned())?.map(|document| document.value)
            }
        };
        let status = document.and_then(|mut value| value.get_mut("status").map(Value::take));
        let status = status.ok_or_else(|| "writes no ExecCredential with a `status`".to_owned())?;
        let credentials: Self = serde_json::from_value(status)
            .map_err(|error| format!("writes a `status` that cannot be read: {error}"))?;
        match (&credentials.token, &credentials.client_certificate_data, &credentials.client_key_data) {
            (None, None, None) => Err("writes a `status` with neither a token nor a certificate".to_owned()),
            (_, Some(_), None) | (_, None, Some(_)) => {
                Err("writes a certificate and key of which one is missing".to_owned())
            }
            _ => Ok(credentials),
        }
    }

    /// A token that will have to be asked for anew.
    fn expiring_token(&self) -> Result<Option<(HeaderValue, Timestamp)>, String> {
        let (Some(token), Some(expires)) = (&self.token, &self.expiration_timestamp) else { return Ok(None) };
        let expires: Result<Timestamp, _> = expires.parse();
        let expires =
            expires.map_err(|error| format!("writes an `expirationTimestamp` that is no time: {error}"))?;
        Ok(Some((bearer(token)?, expires)))
    }

    /// Makes them those of a user; the token only if it stays.
    fn put_into(&self, auth: &mut AuthInfo, stays: bool) -> Result<(), String> {
        let encoded = |pem: &Option<String>| pem.as_ref().map(|pem| STANDARD.encode(pem));
        // A kubeconfig's own form: its secrets are of a type that nothing else here knows.
        let of_user = json!({
            "token": self.token.as_ref().filter(|_| stays),
            "client-certificate-data": encoded(&self.client_certificate_data),
            "client-key-data": encoded(&self.client_key_data),
        });
        let of_user: AuthInfo =
            serde_json::from_value(of_user).map_err(|error| format!("writes what no user has: {error}"))?;
        auth.token = of_user.token;
        if self.client_certificate_data.is_some() {
            auth.client_certificate_data = of_user.client_certificate_data;
            auth.client_key_data = of_user.client_key_data;
        }
        Ok(())
    }
}

// === impl Running ===

impl Running {
    fn start(command: &mut Command, leads: bool) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let (tell, written) = oneshot::channel();
        let output = child.stdout.take();
        let running = Self { child, leads, written, is_over: false };
        // A pipe that is full would keep it from ending.
        thread::Builder::new().name("plugin".to_owned()).spawn(move || {
            let mut text = Vec::new();
            let read = output.map_or(Ok(0), |output| output.take(LARGEST).read_to_end(&mut text));
            let _ = tell.send(read.map(|_| text));
        })?;
        Ok(running)
    }

    /// Waits for its end: how it ended, and what it wrote.
    async fn end(&mut self) -> io::Result<(ExitStatus, Vec<u8>)> {
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            tokio::time::sleep(LOOK).await;
        };
        let written = (&mut self.written).await.map_err(io::Error::other)??;
        self.is_over = true;
        Ok((status, written))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if self.leads {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Renewed ===

impl Renewed {
    /// The token, a new one if this one is about to expire.
    ///
    /// # Errors
    /// It has expired, and there is no other.
    async fn token(&self) -> Result<HeaderValue, String> {
        let mut held = self.held.lock().await;
        let now = Timestamp::now();
        if held.expires > now + EARLY {
            return Ok(held.token.clone());
        }
        let paused = held.failed.as_ref().is_some_and(|(at, _)| at.elapsed() < PAUSE);
        if !paused {
            match self.next().await {
                Ok((token, expires)) => *held = Held { token, expires, failed: None },
                Err(why) => held.failed = Some((Instant::now(), why)),
            }
        }
        match &held.failed {
            Some((_, why)) if held.expires <= Timestamp::now() => Err(why.clone()),
            _ => Ok(held.token.clone()),
        }
    }

    async fn next(&self) -> Result<(HeaderValue, Timestamp), String> {
        let credentials = self.plugin.run().await.map_err(|error| error.to_string())?;
        match credentials.expiring_token().map_err(|why| self.plugin.error(Why::Said(why)).to_string())? {
            Some(next) => Ok(next),
            None => {
                let why = "gives no token that expires, as it did before".to_owned();
                Err(self.plugin.error(Why::Said(why)).to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests;
