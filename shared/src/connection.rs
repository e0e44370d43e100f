//! How HTTP leaves a function: the connections to AWS, and what those to Stripe are made of.
//!
//! The SDK's own client reads the system's certificates from their files, which took nine tenths of the instructions of a
//! function's start. This one trusts Mozilla's list as it was when the function was built, as the connections to Stripe do.

use std::time::Duration;

use aws_smithy_runtime_api::client::{
    connection::{CaptureSmithyConnection, ConnectionMetadata},
    http::{HttpClient, HttpConnector as SdkConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, capture_connection},
    },
    rt::{TokioExecutor, TokioTimer},
};

/// How long a connection to AWS may take to come about.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection is kept that nobody uses.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// What opens a connection, with TLS or, on a local stack, without.
pub(crate) type Connector = HttpsConnector<HttpConnector>;

/// TLS could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("TLS cannot be set up: {0}")]
pub struct NoTls(String);

/// Opens connections that take at most so long to come about.
pub(crate) fn connector(connect_timeout: Option<Duration>) -> Result<Connector, NoTls> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(connect_timeout);
    // The provider is named, so that it does not matter which others a dependency may enable.
    let https = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::aws_lc_rs::default_provider())
        .map_err(|error| NoTls(error.to_string()))?;
    Ok(https.https_or_http().enable_http1().wrap_connector(http))
}

/// The AWS SDK's connections. Clones share them.
#[derive(Debug, Clone)]
pub struct Connections(Client<Connector, SdkBody>);

impl Connections {
    /// Connections that stay open for the next request.
    ///
    /// # Errors
    /// [`NoTls`].
    pub fn pooled() -> Result<Self, NoTls> {
        Ok(Self(builder().pool_idle_timeout(IDLE_TIMEOUT).build(connector(Some(CONNECT_TIMEOUT))?)))
    }

    /// A new connection for every request, which may take so long to come about. After a Lambda function was frozen a pooled one may
    /// be gone without anybody knowing, and whoever has one attempt only would spend it on that.
    ///
    /// # Errors
    /// [`NoTls`].
    pub fn unpooled(connect_timeout: Duration) -> Result<Self, NoTls> {
        Ok(Self(builder().pool_max_idle_per_host(0).build(connector(Some(connect_timeout))?)))
    }
}

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new());
    builder
}

impl HttpClient for Connections {
    /// Of the settings' timeouts one concerns the connector, that for a connection, and it has that already.
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl SdkConnector for Connections {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        let used = capture_connection(&mut request);
        if let Some(capture) = request.extensions().get::<CaptureSmithyConnection>() {
            // By this the SDK has a connection closed over which an answer came that is worth a second try.
            capture.set_connection_retriever(move || {
                used.connection_metadata().as_ref()?;
                let used = used.clone();
                let close = move || {
                    if let Some(connection) = used.connection_metadata().as_ref() {
                        connection.poison();
                    }
                };
                Some(ConnectionMetadata::builder().proxied(false).poison_fn(close).build())
            });
        }
        let sent = self.0.request(request);
        HttpConnectorFuture::new(async move {
            match sent.await {
                Ok(response) => HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
                    .map_err(|error| ConnectorError::other(error.into(), None)),
                // Whether it did not come about or broke: the SDK tries again.
                Err(error) => Err(ConnectorError::io(error.into())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::{TcpListener, TcpStream},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use aws_sdk_dynamodb::{
        Client as Dynamo,
        config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
    };

    use super::*;

    /// Answers requests with these statuses, whichever connection they come by; how many connections there were.
    fn server(statuses: &'static [u16]) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (opened, answered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = opened.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                opened.fetch_add(1, Ordering::SeqCst);
                let answered = answered.clone();
                std::thread::spawn(move || answer(stream.unwrap(), statuses, &answered));
            }
        });
        (url, count)
    }

    fn answer(stream: TcpStream, statuses: &[u16], answered: &AtomicUsize) {
        let mut reader = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header).unwrap_or(0) == 0 {
                    return;
                }
                if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if header.trim().is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let status = statuses[answered.fetch_add(1, Ordering::SeqCst)];
            let kind = "Content-Type: application/x-amz-json-1.0";
            write!(reader.get_mut(), "HTTP/1.1 {status} Said\r\n{kind}\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
        }
    }

    fn dynamo(url: &str, connections: Connections) -> Dynamo {
        let retries = RetryConfig::standard().with_initial_backoff(Duration::from_millis(1));
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(url)
            .retry_config(retries)
            .http_client(connections);
        Dynamo::from_conf(config.build())
    }

    #[tokio::test]
    async fn pooled_connections_serve_many_requests_and_unpooled_ones_a_request_each() {
        for (connections, expected) in
            [(Connections::pooled().unwrap(), 1), (Connections::unpooled(Duration::from_secs(1)).unwrap(), 3)]
        {
            let (url, opened) = server(&[200, 200, 200]);
            let dynamo = dynamo(&url, connections);
            for _ in 0..3 {
                dynamo.list_tables().send().await.unwrap();
            }
            assert_eq!(opened.load(Ordering::SeqCst), expected);
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_worth_a_second_try_is_asked_for_by_another_connection() {
        let (url, opened) = server(&[500, 200]);
        dynamo(&url, Connections::pooled().unwrap()).list_tables().send().await.unwrap();
        assert_eq!(opened.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn where_nobody_answers_it_is_tried_again_and_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = dynamo(&url, Connections::pooled().unwrap()).list_tables().send().await.unwrap_err();
        let aws_sdk_dynamodb::error::SdkError::DispatchFailure(failure) = error else { panic!("{error:?}") };
        assert!(failure.is_io(), "{failure:?}");
    }
}
