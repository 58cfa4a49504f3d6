//! Requests to an API server, in JSON: each ends in time, lists come in pages, and what was not answered says who was asked, or what it would take.

use std::path::Path;
use std::time::Duration;

use http::{Method, Request, header};
use kube::Client;
use serde_json::Value;
use tulle_control_plane::source::kubernetes::{self, configuration, innermost};

use super::super::seen::{Part, Unread};
use crate::interrupt::interruptible;

/// An API server, as somebody.
pub(crate) struct Api {
    client: Client,
    server: String,
    patience: Duration,
}

/// What one request may take. A webhook may have ten seconds of it.
const PATIENCE: Duration = Duration::from_secs(15);
/// What a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Objects of one answer.
const PAGE: usize = 250;

/// The API server of a context, as kubectl finds it; in a pod, its own cluster's.
///
/// # Errors
/// What is wrong with the kubeconfig, with the remedy.
pub(crate) async fn connect(context: Option<&str>, file: Option<&Path>) -> Result<Api, String> {
    let (client, server) = client(context, file).await?;
    Ok(Api::new(client, server, PATIENCE))
}

/// The client of a context, and where its API server is.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn client(context: Option<&str>, file: Option<&Path>) -> Result<(Client, String), String> {
    let config = configuration(context, file).await;
    let mut config = config.map_err(|why| format!("there is no cluster to look at: {why}"))?;
    config.connect_timeout = Some(CONNECT);
    config.default_retry = false;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    // A plugin that the kubeconfig names is not left behind.
    let client = interruptible(kubernetes::client(config)).await.map_err(|error| error.to_string())?;
    let client =
        client.map_err(|error| format!("what the kubeconfig says of {server} cannot be used: {error}"))?;
    Ok((client, server))
}

/// A part of a path. Names of Kubernetes need nothing of it; what somebody typed might.
pub(crate) fn segment(name: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    name.bytes()
        .map(|byte| if safe(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

// === impl Api ===

impl Api {
    pub(crate) fn new(client: Client, server: String, patience: Duration) -> Self {
        Self { client, server, patience }
    }

    /// Where it is.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// What is there. `needs`: what may be missing, as `kubectl auth can-i` has it.
    pub(crate) async fn get(&self, path: &str, needs: &str) -> Part<Value> {
        let text = self.ask(Method::GET, path, None).await.map_err(|refused| self.unread(refused, needs))?;
        self.json(&text, path)
    }

    /// The same; `None` if there is no such object.
    pub(crate) async fn find(&self, path: &str, needs: &str) -> Part<Option<Value>> {
        match self.ask(Method::GET, path, None).await {
            Ok(text) => self.json(&text, path).map(Some),
            Err(Refused::Said { code: 404, .. }) => Ok(None),
            Err(refused) => Err(self.unread(refused, needs)),
        }
    }

    /// What is kept of each object of a list, which is read in pages.
    pub(crate) async fn list<T>(
        &self,
        path: &str,
        needs: &str,
        keep: impl Fn(Value) -> Option<T>,
    ) -> Part<Vec<T>> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let (mut kept, mut token) = (Vec::new(), String::new());
        loop {
            let mut page = format!("{path}{separator}limit={PAGE}");
            if !token.is_empty() {
                page.push_str(&format!("&continue={}", segment(&token)));
            }
            let mut answer = self.get(&page, needs).await?;
            let items = answer.get_mut("items").map(Value::take);
            let Some(Value::Array(items)) = items else {
                return Err(Unread::Failed(format!("{}{path} is no list", self.server)));
            };
            kept.extend(items.into_iter().filter_map(&keep));
            match answer.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(next) if !next.is_empty() && next != token => next.clone_into(&mut token),
                _ => return Ok(kept),
            }
        }
    }

    /// An answer to what is given.
    pub(super) async fn post(&self, path: &str, needs: &str, body: &Value) -> Part<Value> {
        let text =
            self.ask(Method::POST, path, Some(body)).await.map_err(|refused| self.unread(refused, needs))?;
        self.json(&text, path)
    }

    /// What would come of an object, or why it would not be made.
    pub(super) async fn try_out(&self, path: &str, needs: &str, body: &Value) -> Part<Result<Value, String>> {
        match self.ask(Method::POST, path, Some(body)).await {
            Ok(text) => self.json(&text, path).map(Ok),
            // Of 403, only this one is about who asks.
            Err(Refused::Said { code, message })
                if code != 401 && !message.contains("cannot create resource") =>
            {
                Ok(Err(message))
            }
            Err(refused) => Err(self.unread(refused, needs)),
        }
    }

    /// A page of a Pod, through the API server. `at`: `[https:]<pod>:<port>`.
    pub(super) async fn through(&self, namespace: &str, at: &str, page: &str) -> Part<String> {
        let path = format!("/api/v1/namespaces/{}/pods/{at}/proxy/{page}", segment(namespace));
        let needs = format!("get pods/proxy in {namespace}");
        self.ask(Method::GET, &path, None).await.map_err(|refused| match refused {
            Refused::Said { code, message } if code != 401 && code != 403 => {
                Unread::Failed(format!("{at}: {code}: {}", message.trim()))
            }
            refused => self.unread(refused, &needs),
        })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String, Refused> {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = request.body(body).map_err(|error| Refused::Nothing(format!("{path}: {error}")))?;
        match tokio::time::timeout(self.patience, self.client.request_text(request)).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(kube::Error::Api(status))) => {
                Err(Refused::Said { code: status.code, message: status.message })
            }
            Ok(Err(error)) => Err(Refused::Nothing(innermost(&error, CONNECT))),
            Err(_) => Err(Refused::Nothing(format!("no answer within {:?}", self.patience))),
        }
    }

    fn json(&self, text: &str, path: &str) -> Part<Value> {
        serde_json::from_str(text).map_err(|error| {
            Unread::Failed(format!("what {}{path} answers is no JSON: {error}", self.server))
        })
    }

    fn unread(&self, refused: Refused, needs: &str) -> Unread {
        match refused {
            Refused::Said { code: 403, .. } => Unread::Forbidden(needs.to_owned()),
            Refused::Said { code: 401, .. } => {
                Unread::Failed(format!("{} does not know who you are: log in again", self.server))
            }
            Refused::Said { code, message } => {
                Unread::Failed(format!("{} answers {code}: {}", self.server, message.trim()))
            }
            Refused::Nothing(why) => Unread::Failed(format!("{}: {why}", self.server)),
        }
    }
}

/// Why there is no answer that was asked for.
enum Refused {
    /// An answer of another kind.
    Said { code: u16, message: String },
    /// None.
    Nothing(String),
}
