//! Asking an API server as somebody, in JSON, and what it says.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, header};
use kube::{Client, Config};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

/// Somebody with a token.
#[derive(Clone)]
pub struct Caller {
    client: Client,
    /// By `apiVersion`.
    kinds: Arc<Mutex<BTreeMap<String, Vec<Kind>>>>,
}

#[derive(Clone, Debug)]
struct Kind {
    kind: String,
    plural: String,
    namespaced: bool,
}

/// What the server did not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Of HTTP; 0 if there was no answer.
    pub code: u16,
    /// For machines, such as `Forbidden` and `Invalid`.
    pub reason: String,
    pub message: String,
    /// What is wrong where: fields and messages.
    pub causes: Vec<(String, String)>,
}

/// Who writes, for server-side apply.
const FIELD_MANAGER: &str = "tests";

// === impl Caller ===

impl Caller {
    pub(super) fn new(address: &SocketAddr, root: &str, token: &str) -> Self {
        let mut config = Config::new(format!("https://{address}").parse().expect("a URL"));
        let root = CertificateDer::from_pem_slice(root.as_bytes()).expect("a certificate");
        config.root_cert = Some(vec![root.to_vec()]);
        config.auth_info.token = Some(token.to_owned().into());
        // Tests want to know.
        config.default_retry = false;
        let client = Client::try_from(config).expect("a client");
        Self { client, kinds: Arc::default() }
    }

    /// For what is typed.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What is said at a path, whatever it is.
    ///
    /// # Errors
    /// What the server says in place of it.
    pub async fn text(&self, path: &str) -> Result<String, Refused> {
        let request = Request::get(path).body(Vec::new()).expect("a request");
        self.client.request_text(request).await.map_err(Refused::from)
    }

    /// What is at a path.
    ///
    /// # Errors
    /// What the server says in place of it.
    pub async fn get(&self, path: &str) -> Result<Value, Refused> {
        self.ask(Method::GET, path, "", None).await
    }

    /// Gives the server something at a path.
    ///
    /// # Errors
    /// What the server says in place of its answer.
    pub async fn post(&self, path: &str, value: &Value) -> Result<Value, Refused> {
        self.ask(Method::POST, path, "application/json", Some(value)).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refused> {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, content);
        }
        let body = body.map(|value| value.to_string().into_bytes()).unwrap_or_default();
        let text = self.client.request_text(request.body(body).expect("a request")).await?;
        Ok(serde_json::from_str(&text).expect("JSON"))
    }

    /// Creates an object; fields that its kind does not have are refused.
    ///
    /// # Errors
    /// What the server has against it.
    pub async fn create(&self, object: &Value) -> Result<Value, Refused> {
        let path = self.collection(object).await?;
        self.post(&format!("{path}?fieldValidation=Strict"), object).await
    }

    /// What would come of [`Caller::create`]; nothing is kept.
    ///
    /// # Errors
    /// What the server has against it.
    pub async fn try_out(&self, object: &Value) -> Result<Value, Refused> {
        let path = self.collection(object).await?;
        self.post(&format!("{path}?fieldValidation=Strict&dryRun=All"), object).await
    }

    /// Creates or changes an object, as `kubectl apply --server-side --force-conflicts` does; fields that its kind does not have are refused.
    ///
    /// # Errors
    /// What the server has against it.
    pub async fn apply(&self, object: &Value) -> Result<Value, Refused> {
        let path = self.own(object).await?;
        let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true&fieldValidation=Strict");
        self.ask(Method::PATCH, &path, "application/apply-patch+yaml", Some(object)).await
    }

    /// Writes an object's status, whoever wrote it before.
    ///
    /// # Errors
    /// What the server has against it.
    pub async fn set_status(&self, object: &Value, status: Value) -> Result<Value, Refused> {
        let path = format!("{}/status", self.own(object).await?);
        self.ask(Method::PATCH, &path, "application/merge-patch+json", Some(&json!({"status": status}))).await
    }

    /// The object of this `apiVersion`, kind, namespace and name, as it is now.
    ///
    /// # Errors
    /// What the server says in place of it.
    pub async fn now(&self, object: &Value) -> Result<Value, Refused> {
        let path = self.own(object).await?;
        self.get(&path).await
    }

    /// Deletes the object of this `apiVersion`, kind, namespace and name at once.
    ///
    /// # Errors
    /// What the server says in place of it.
    pub async fn delete(&self, object: &Value) -> Result<Value, Refused> {
        let path = self.own(object).await?;
        self.ask(Method::DELETE, &format!("{path}?gracePeriodSeconds=0"), "", None).await
    }

    /// Begins the end of the object of this `apiVersion`, kind, namespace and name: a pod has its own time for it.
    ///
    /// # Errors
    /// What the server says in place of it.
    pub async fn begin_delete(&self, object: &Value) -> Result<Value, Refused> {
        let path = self.own(object).await?;
        self.ask(Method::DELETE, &path, "", None).await
    }

    /// Where objects of this one's kind are, in its namespace; in `default` if it names none.
    async fn collection(&self, object: &Value) -> Result<String, Refused> {
        let [version, kind] = ["apiVersion", "kind"]
            .map(|field| object[field].as_str().unwrap_or_else(|| panic!("no {field}: {object}")));
        let root = root(version);
        let known = self.kinds.lock().get(version).cloned().unwrap_or_default();
        let known = match known.iter().find(|one| one.kind == kind) {
            Some(known) => known.clone(),
            None => {
                let all = kinds(&self.get(&root).await?);
                let found = all.iter().find(|one| one.kind == kind).cloned();
                self.kinds.lock().insert(version.to_owned(), all);
                found.ok_or_else(|| Refused {
                    code: 404,
                    reason: "NotFound".to_owned(),
                    message: format!("the server has no {kind} of {version}"),
                    causes: Vec::new(),
                })?
            }
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(crate::NAMESPACE);
        Ok(match known.namespaced {
            true => format!("{root}/namespaces/{namespace}/{}", known.plural),
            false => format!("{root}/{}", known.plural),
        })
    }

    async fn own(&self, object: &Value) -> Result<String, Refused> {
        let name = object["metadata"]["name"].as_str().unwrap_or_else(|| panic!("no name: {object}"));
        Ok(format!("{}/{name}", self.collection(object).await?))
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Caller").finish_non_exhaustive()
    }
}

/// Where a version's kinds are, and what there is of them.
fn root(version: &str) -> String {
    let prefix = if version.contains('/') { "/apis" } else { "/api" };
    format!("{prefix}/{version}")
}

/// Of a list of what a version has; without subresources.
fn kinds(list: &Value) -> Vec<Kind> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = list["resources"].as_array().into_iter().flatten().map(|one| Kind {
        kind: text(&one["kind"]),
        plural: text(&one["name"]),
        namespaced: one["namespaced"] == true,
    });
    all.filter(|one| !one.plural.contains('/')).collect()
}

// === impl Refused ===

impl From<kube::Error> for Refused {
    fn from(error: kube::Error) -> Self {
        let status = match error {
            kube::Error::Api(status) => status,
            other => {
                let message = format!("{:#}", Chain(&other));
                return Self { code: 0, reason: String::new(), message, causes: Vec::new() };
            }
        };
        let causes = status.details.into_iter().flat_map(|details| details.causes);
        let causes = causes.map(|cause| (cause.field, cause.message)).collect();
        Self { code: status.code, reason: status.reason, message: status.message, causes }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}: {}", self.code, self.reason, self.message)
    }
}

/// An error with what caused it.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)?;
        let mut error = self.0;
        while let Some(source) = error.source() {
            write!(out, ": {source}")?;
            error = source;
        }
        Ok(())
    }
}
