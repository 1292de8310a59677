// Command loopcsi serves the test bed's CSI driver to the sidecars and to the
// kubelet of one node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
	"stillpoint.io/stillpoint/tests/cluster/loopcsi/bucket"
)

func main() {
	endpoint := flag.String("endpoint", "", "socket of the CSI services")
	register := flag.String("registration", "", "socket by which the kubelet finds the driver")
	name := flag.String("name", loopcsi.Name, "name of the driver in the Kubernetes API")
	node := flag.String("node", "", "name of the node")
	dir := flag.String("store", "", "directory on a file system that can make reflinks")
	var s3 s3
	flag.StringVar(&s3.endpoint, "s3-endpoint", "", "address and port of the S3 server for exported snapshots; without it none is exported")
	flag.StringVar(&s3.bucket, "s3-bucket", "exports", "bucket for exported snapshots; it must exist")
	flag.StringVar(&s3.credentials, "s3-credentials", "", "file with the S3 server's credentials, as AWS's tools have it")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, log, *endpoint, *register, *name, *node, *dir, s3); err != nil {
		log.Error("loopcsi ends", "error", err)
		os.Exit(1) //nolint:gocritic // the signal handler dies with us
	}
}

// s3 is where exported snapshots go.
type s3 struct{ endpoint, bucket, credentials string }

// open is nil where no server is named.
func (s s3) open() (loopcsi.Bucket, error) {
	if s.endpoint == "" {
		return nil, nil //nolint:nilnil // no bucket is a valid answer here
	}
	return bucket.Open(s.endpoint, s.bucket, s.credentials)
}

func serve(ctx context.Context, log *slog.Logger, endpoint, register, name, node, dir string, s3 s3) error {
	store, err := loopcsi.OpenStore(dir)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	bucket, err := s3.open()
	if err != nil {
		return err
	}
	driver := loopcsi.NewDriver(name, node, store, bucket, log)
	defer driver.Close()
	if err := driver.ResumeUploads(); err != nil {
		return err
	}
	services := grpc.NewServer(grpc.UnaryInterceptor(driver.LogCalls))
	driver.Register(services)
	announcement := grpc.NewServer()
	registration.RegisterRegistrationServer(announcement, &announcer{name: name, endpoint: endpoint, log: log})

	ended := make(chan error, 2)
	for socket, server := range map[string]*grpc.Server{endpoint: services, register: announcement} {
		listener, err := listen(ctx, socket)
		if err != nil {
			return err
		}
		go func() { ended <- server.Serve(listener) }()
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	announcement.Stop()
	services.GracefulStop()
	return err
}

// listen replaces the socket of an earlier run.
func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	return l, nil
}

// announcer tells the kubelet about the driver.
type announcer struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
	log            *slog.Logger
}

func (a *announcer) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: a.name, Endpoint: a.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (a *announcer) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	a.log.Info("the kubelet answers", "registered", s.GetPluginRegistered(), "error", s.GetError())
	return &registration.RegistrationStatusResponse{}, nil
}
