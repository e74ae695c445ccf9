//! Services and their endpoints.

use std::net::IpAddr;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, api::ListParams};
use serde_json::Value;

use super::Lookup;
use crate::cluster::Error;

/// Services with node ports that are looked through.
const OF_ALL_SERVICES: u32 = 500;

impl Lookup {
    pub(super) async fn service(&mut self, namespace: &str, name: &str) -> Result<(), Error> {
        let api: Api<Service> = Api::namespaced(self.cluster.client.clone(), namespace);
        match self.cluster.get(&api, "service", name).await? {
            Some(service) => self.learn_service(service).await,
            None => Ok(()),
        }
    }

    /// Learns the services that have this port on every node.
    ///
    /// # Errors
    /// The server refuses, or cannot be asked.
    pub async fn node_port(&mut self, port: u16) -> Result<(), Error> {
        let has = |service: &Value| {
            service["spec"]["ports"].as_array().is_some_and(|ports| ports.iter().any(|one| one["nodePort"] == port))
        };
        for kind in ["NodePort", "LoadBalancer"] {
            self.services_with(&format!("spec.type={kind}"), has).await?;
        }
        Ok(())
    }

    /// Learns the service that has this address by its load balancer; false where the server cannot be asked.
    pub(super) async fn balancer(&mut self, address: IpAddr) -> Result<bool, Error> {
        let is_it = |entry: &Value| entry["ip"].as_str().and_then(|ip| ip.parse().ok()) == Some(address);
        let has = |service: &Value| {
            service["status"]["loadBalancer"]["ingress"].as_array().is_some_and(|ingress| ingress.iter().any(is_it))
        };
        self.services_with("spec.type=LoadBalancer", has).await
    }

    /// Learns services of all namespaces; false where the server cannot be asked by these fields: before 1.31.
    pub(super) async fn services_with(&mut self, fields: &str, wanted: impl Fn(&Value) -> bool) -> Result<bool, Error> {
        let api: Api<Service> = Api::all(self.cluster.client.clone());
        let parameters = ListParams::default().fields(fields).limit(OF_ALL_SERVICES);
        let services = match self.cluster.list(&api, "services", &parameters).await {
            Err(Error::Refused { code: 400, .. }) => return Ok(false),
            found => found?,
        };
        if services.len() >= OF_ALL_SERVICES as usize {
            self.notes.push(format!("only the first {OF_ALL_SERVICES} services with {fields} were looked through"));
        }
        for service in services.into_iter().filter(wanted) {
            self.learn_service(service).await?;
        }
        Ok(true)
    }

    async fn learn_service(&mut self, service: Value) -> Result<(), Error> {
        let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        self.learn("Service", service);
        let api: Api<EndpointSlice> = Api::namespaced(self.cluster.client.clone(), &namespace);
        let parameters = ListParams::default().labels(&format!("kubernetes.io/service-name={name}")).limit(10);
        let what = format!("endpointslices of service {namespace}/{name}");
        for slice in self.cluster.list(&api, &what, &parameters).await? {
            self.learn("EndpointSlice", slice);
        }
        Ok(())
    }
}
