//! Single requests: within a time, repeated where the server asks for it, and explained where it refuses.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{ListParams, ObjectList},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    Cluster, Error,
    error::{Purpose, chain},
    names::NAMESPACE,
};

/// How long a namespace may take to go that is being deleted.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// Objects that are asked for at a time, where all are wanted.
const PAGE: u32 = 500;
/// Where the server says "later" and not when.
const LATER: Duration = Duration::from_millis(500);

impl Cluster {
    /// One object, or None where there is none of that name.
    ///
    /// # Errors
    /// The server refuses, or cannot be asked.
    pub(super) async fn get<K>(&self, api: &Api<K>, what: &str, name: &str) -> Result<Option<Value>, Error>
    where
        K: Clone + Debug + DeserializeOwned + Serialize,
    {
        let asked = format!("get {what} {name}");
        self.repeat(Purpose::Look, &asked, || api.get_opt(name))
            .await?
            .map(|object| self.value(&asked, &object))
            .transpose()
    }

    /// What fits the parameters, which limit it: the first page.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    pub(super) async fn list<K>(&self, api: &Api<K>, what: &str, parameters: &ListParams) -> Result<Vec<Value>, Error>
    where
        K: Clone + Debug + DeserializeOwned + Serialize,
    {
        let asked = format!("list {what}");
        let list: ObjectList<K> = self.repeat(Purpose::Look, &asked, || api.list(parameters)).await?;
        list.items.iter().map(|object| self.value(&asked, object)).collect()
    }

    /// All that fits the parameters, page by page.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    pub(super) async fn list_all<K>(
        &self,
        purpose: Purpose,
        api: &Api<K>,
        what: &str,
        mut parameters: ListParams,
    ) -> Result<Vec<K>, Error>
    where
        K: Clone + Debug + DeserializeOwned,
    {
        let asked = format!("list {what}");
        parameters.limit = Some(PAGE);
        let mut all = Vec::new();
        loop {
            let page = self.repeat(purpose, &asked, || api.list(&parameters)).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    fn value<K: Serialize>(&self, asked: &str, object: &K) -> Result<Value, Error> {
        let value = serde_json::to_value(object);
        value.map_err(|source| Error::of(&self.context, Purpose::Look, asked, &kube::Error::SerdeError(source)))
    }

    /// Asks, and asks again where the server has too much to do or is ill (429, 500, 503) or the connection broke, for as long as
    /// one request may take. Only for what may be done twice: questions, applying, deleting.
    ///
    /// # Errors
    /// Of the last try.
    pub(super) async fn repeat<T, F>(
        &self,
        purpose: Purpose,
        asked: &str,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            let error = match timeout_at(deadline, ask()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => return Err(self.slow(asked)),
            };
            let Some(pause) = pause(&error).filter(|pause| Instant::now() + *pause < deadline) else {
                return Err(Error::of(&self.context, purpose, asked, &error));
            };
            sleep(pause).await;
        }
    }

    /// Asks once: what would be made or started twice.
    ///
    /// # Errors
    /// The server refuses, or does not answer in time.
    pub(super) async fn once<T>(
        &self,
        purpose: Purpose,
        asked: &str,
        ask: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        match timeout(self.request_timeout, ask).await {
            Ok(answer) => answer.map_err(|error| Error::of(&self.context, purpose, asked, &error)),
            Err(_) => Err(self.slow(asked)),
        }
    }

    /// Waits while our namespace is on its way out, by an uninstall or a trace that ended just now: until it is gone, nothing can be
    /// made in it.
    ///
    /// # Errors
    /// It is still there after [`GONE_WITHIN`]; or the server refuses, or cannot be asked.
    pub(super) async fn until_namespace_is_gone_or_stays(&self, purpose: Purpose) -> Result<(), Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let asked = format!("get namespace {NAMESPACE}");
            let found = self.repeat(purpose, &asked, || api.get_opt(NAMESPACE)).await?;
            if found.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_none()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::NotGone { what: format!("namespace/{NAMESPACE}"), after: GONE_WITHIN });
            }
            sleep(LATER).await;
        }
    }

    fn slow(&self, asked: &str) -> Error {
        let (context, asked, after) = (self.context.clone(), asked.to_owned(), self.request_timeout);
        Error::Slow { context, asked, after }
    }
}

/// How long to wait before asking again; None: it would not help.
fn pause(error: &kube::Error) -> Option<Duration> {
    match error {
        kube::Error::Api(status) if matches!(status.code, 429 | 500 | 502..=504) => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            Some(if seconds == 0 { LATER } else { Duration::from_secs(seconds.into()) })
        }
        kube::Error::Api(_) => None,
        // A certificate that does not fit will not fit the next time either.
        kube::Error::HyperError(error) if error.is_closed() || error.is_incomplete_message() => Some(LATER),
        kube::Error::Service(source) => {
            let text = chain(source.as_ref());
            (text.contains("reset") || text.contains("closed before")).then_some(LATER)
        }
        _ => None,
    }
}
