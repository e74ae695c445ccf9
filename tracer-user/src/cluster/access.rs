//! From a kubeconfig to a client.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Error;

/// How long connecting may take where `--request-timeout` says nothing.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// How to reach the cluster: kubectl's options of the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Access {
    /// Path of the kubeconfig [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// User to impersonate
    #[arg(long = "as", value_name = "USER")]
    pub as_user: Option<String>,
    /// Group to impersonate; may be repeated
    #[arg(long = "as-group", value_name = "GROUP", requires = "as_user")]
    pub as_groups: Vec<String>,
    /// How long one request to the API server may take, such as 5s or 1m
    #[arg(long, value_name = "DURATION", value_parser = crate::cli::args::duration, default_value = "10s")]
    pub request_timeout: Option<Duration>,
}

/// A cluster that can be asked.
#[derive(Clone)]
pub struct Cluster {
    /// Asks.
    pub client: Client,
    /// The context, as messages name it.
    pub context: String,
    /// Namespace of the context: that of names given without one.
    pub namespace: String,
    /// How long one request may take.
    pub request_timeout: Duration,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Access {
    /// Whether an option names a cluster, or a kubeconfig lies where kubectl looks for one.
    pub fn is_configured(&self) -> bool {
        self.is_named() || Self::is_in_environment() || {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            home.is_some_and(|home| home.join(".kube/config").is_file())
        }
    }

    /// Whether `$KUBECONFIG` names a file.
    pub fn is_in_environment() -> bool {
        std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty())
    }

    /// Whether an option names a cluster.
    pub fn is_named(&self) -> bool {
        let Self { kubeconfig, context, as_user, as_groups: _, request_timeout: _ } = self;
        kubeconfig.is_some() || context.is_some() || as_user.is_some()
    }

    /// Reads the kubeconfig; the API server is not asked yet.
    ///
    /// # Errors
    /// There is no kubeconfig, it cannot be read, or what it says cannot be used.
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        let Self { kubeconfig, context, as_user, as_groups, request_timeout } = self;
        let read = match kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let read = read.map_err(|source| Error::Kubeconfig { path: kubeconfig.clone(), source: Box::new(source) })?;
        let context = context.clone().or_else(|| read.current_context.clone()).unwrap_or_default();
        let contexts = read.contexts.iter().map(|context| context.name.clone()).collect::<Vec<_>>();
        if !contexts.contains(&context) {
            return Err(Error::NoSuchContext { wanted: context, known: contexts });
        }
        let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
        let configured = Config::from_custom_kubeconfig(read, &options).await;
        let mut config =
            configured.map_err(|source| Error::Kubeconfig { path: kubeconfig.clone(), source: Box::new(source) })?;
        if let Some(user) = as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = (!as_groups.is_empty()).then(|| as_groups.clone());
        }
        let request_timeout = request_timeout.unwrap_or(CONNECT_WITHIN);
        config.connect_timeout = Some(request_timeout);
        // Of the reading of a stream: a session may be silent for longer than any request takes. Requests are timed by whoever
        // makes them.
        config.read_timeout = None;
        config.write_timeout = None;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config)
            .map_err(|source| Error::Client { context: context.clone(), cause: super::error::chain(&source) })?;
        Ok(Cluster { client, context, namespace, request_timeout })
    }
}
