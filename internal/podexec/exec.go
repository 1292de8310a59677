package podexec

import (
	"context"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"stillpoint.io/stillpoint/internal/cluster"
)

// Container names a container of a pod.
type Container struct {
	Namespace, Pod, Name string
}

func (c Container) String() string {
	return fmt.Sprintf("container %s of pod %s/%s", c.Name, c.Namespace, c.Pod)
}

// Streams are the standard streams of a command. Each may be nil.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Executor runs a command in a container; Client implements it. The command must see end of
// file on its standard input soon after ctx ends or the connection breaks. All guarantees
// of package quiesce depend on that.
type Executor interface {
	Exec(ctx context.Context, container Container, command []string, streams Streams) error
}

// Client runs commands in containers through the API server.
type Client struct {
	config *rest.Config
	kube   kubernetes.Interface
}

// New returns a Client for an API server.
func New(clients *cluster.Clients) *Client {
	return &Client{config: clients.Config, kube: clients.Kube}
}

// Exec runs command in a container until it ends or ctx does, and returns a
// k8s.io/client-go/util/exec.CodeExitError for any exit code but 0. When ctx ends, only
// the connection is closed: the command sees end of file on its standard input and
// nothing else.
//
// The kubelet refuses an exec without any stream, so a command without streams has its
// standard error discarded.
//
// Exec requests a WebSocket and falls back to SPDY if the API server or a proxy cannot
// upgrade, as kubectl does. Both send a ping every 5 s, so that a load balancer does
// not close the stream as idle.
func (c *Client) Exec(ctx context.Context, container Container, command []string, streams Streams) error {
	if streams == (Streams{}) {
		streams.Stderr = io.Discard
	}
	request := c.kube.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(container.Namespace).Name(container.Pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container.Name,
			Command:   command,
			Stdin:     streams.Stdin != nil,
			Stdout:    streams.Stdout != nil,
			Stderr:    streams.Stderr != nil,
		}, scheme.ParameterCodec)

	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", request.URL())
	if err != nil {
		return fmt.Errorf("exec in %s: %w", container, err)
	}
	// The WebSocket protocol starts with a GET.
	webSocket, err := remotecommand.NewWebSocketExecutor(c.config, "GET", request.URL().String())
	if err != nil {
		return fmt.Errorf("exec in %s: %w", container, err)
	}
	executor, err := remotecommand.NewFallbackExecutor(webSocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return fmt.Errorf("exec in %s: %w", container, err)
	}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{
		Stdin: streams.Stdin, Stdout: streams.Stdout, Stderr: streams.Stderr,
	})
	if err != nil {
		return fmt.Errorf("exec in %s: %w", container, err)
	}
	return nil
}
