//! The cluster's certificates, made anew with each server.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};

/// Who signs the cluster's certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// Its certificate, for kubeconfigs.
    pub(crate) pem: String,
}

/// A client's certificate and key.
pub(crate) struct Client {
    pub(crate) der: Vec<u8>,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Authority> {
        let key = KeyPair::generate().context("make the cluster's key")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "kubernetes");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = parameters.self_signed(&key).context("sign the cluster's certificate")?;
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Ok(Authority { issuer: Issuer::new(parameters, key), certificate: der, pem })
    }

    /// A certificate that names a user and groups as Kubernetes reads them: CN and O.
    pub(crate) fn client(&self, name: &str, groups: &[String]) -> Result<Client> {
        let key = KeyPair::generate().context("make a user's key")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        for (number, group) in groups.iter().enumerate() {
            // A name holds one O; further ones would replace it, so they go where nobody looks for them.
            let place = if number == 0 { DnType::OrganizationName } else { DnType::OrganizationalUnitName };
            parameters.distinguished_name.push(place, group.as_str());
        }
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&key, &self.issuer).context("sign a user's certificate")?;
        Ok(Client { der: certificate.der().to_vec(), certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Takes connections to `address`, with or without a certificate of ours.
    pub(crate) fn acceptor(&self, address: SocketAddr) -> Result<TlsAcceptor> {
        let key = KeyPair::generate().context("make the server's key")?;
        let names = ["kubernetes".to_owned(), "localhost".to_owned(), address.ip().to_string()];
        let mut parameters = CertificateParams::new(names).context("name the server")?;
        parameters.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = parameters.signed_by(&key, &self.issuer).context("sign the server's certificate")?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).context("trust the cluster's own certificate")?;
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .context("check clients' certificates")?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choose TLS versions")?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .context("use the server's certificate")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
