package cluster

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
)

// Container is one container of a running pod.
type Container struct {
	Namespace, Pod, Name string
}

func (c Container) String() string {
	return fmt.Sprintf("container %s of pod %s/%s", c.Name, c.Namespace, c.Pod)
}

// Streams are the three standard streams of a command. Stdin may be nil.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Executor runs commands in containers.
type Executor struct {
	config *rest.Config
	kube   kubernetes.Interface
}

// NewExecutor returns an Executor that reaches containers through the API
// server of clients.
func NewExecutor(clients *Clients) *Executor {
	return &Executor{config: clients.Config, kube: clients.Kube}
}

// Exec runs command in a container until it ends or ctx does, and returns a
// k8s.io/client-go/util/exec.CodeExitError when it ended with another code
// than 0. When ctx ends, only the connection is closed: the command sees end
// of file on its standard input and nothing else.
//
// The kubelet refuses an exec without any stream, so a command without one has its
// standard error discarded.
//
// It asks for a WebSocket and falls back to SPDY where the API server or a
// proxy on the way cannot upgrade, as kubectl does. Both send a ping every 5 s,
// so that a load balancer has no idle stream to cut.
func (e *Executor) Exec(ctx context.Context, container Container, command []string, streams Streams) error {
	if streams == (Streams{}) {
		streams.Stderr = io.Discard
	}
	request := e.kube.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(container.Namespace).Name(container.Pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container.Name,
			Command:   command,
			Stdin:     streams.Stdin != nil,
			Stdout:    streams.Stdout != nil,
			Stderr:    streams.Stderr != nil,
		}, scheme.ParameterCodec)

	spdy, err := remotecommand.NewSPDYExecutor(e.config, "POST", request.URL())
	if err != nil {
		return fmt.Errorf("exec in %s: %w", container, err)
	}
	// A WebSocket begins as a GET, by its protocol.
	webSocket, err := remotecommand.NewWebSocketExecutor(e.config, "GET", request.URL().String())
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
