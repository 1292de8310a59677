// Package bucket keeps exported snapshots on an S3 server. Each call is one
// attempt: the driver knows how often it wants to try.
package bucket

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"stillpoint.io/stillpoint/tests/cluster/loopcsi"
)

// Codes of the server's answers.
const (
	noSuchKey    = "NoSuchKey"
	noSuchBucket = "NoSuchBucket"
)

// Bucket is one bucket of a server, which must exist.
type Bucket struct {
	client *minio.Client
	name   string
}

// Open prepares a connection to the server at endpoint, an address and port
// without TLS. The file holds credentials as AWS's tools read them. The server
// need not answer yet.
func Open(endpoint, name, file string) (*Bucket, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("open bucket %s: credentials: %w", name, err)
	}
	client, err := minio.New(endpoint, &minio.Options{
		Creds:        credentials.NewFileAWSCredentials(file, "default"),
		Region:       "us-east-1", // otherwise it would be asked for
		BucketLookup: minio.BucketLookupPath,
		MaxRetries:   1,
	})
	if err != nil {
		return nil, fmt.Errorf("open bucket %s at %s: %w", name, endpoint, err)
	}
	return &Bucket{client: client, name: name}, nil
}

// Put stores size bytes under a key.
func (b *Bucket) Put(ctx context.Context, key string, content io.Reader, size int64) error {
	_, err := b.client.PutObject(ctx, b.name, key, content, size, minio.PutObjectOptions{})
	return b.asError("put", key, err)
}

// Get reads what is stored under a key.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	object, err := b.client.GetObject(ctx, b.name, key, minio.GetObjectOptions{})
	if err == nil {
		_, err = object.Stat() // the request is made only now
	}
	if err != nil {
		return nil, b.asError("get", key, err)
	}
	return object, nil
}

// Delete removes a key.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := b.client.RemoveObject(ctx, b.name, key, minio.RemoveObjectOptions{})
	if minio.ToErrorResponse(err).Code == noSuchKey {
		return nil
	}
	return b.asError("delete", key, err)
}

// List lists the keys.
func (b *Bucket) List(ctx context.Context) ([]string, error) {
	var keys []string
	for object := range b.client.ListObjects(ctx, b.name, minio.ListObjectsOptions{Recursive: true}) {
		if object.Err != nil {
			return nil, b.asError("list", "", object.Err)
		}
		keys = append(keys, object.Key)
	}
	return keys, nil
}

func (b *Bucket) asError(did, key string, err error) error {
	if err == nil {
		return nil
	}
	answer := minio.ToErrorResponse(err)
	if answer.Code == noSuchKey || (answer.StatusCode == http.StatusNotFound && answer.Code != noSuchBucket) {
		err = loopcsi.ErrNotFound
	}
	return fmt.Errorf("%s %s/%s: %w", did, b.name, key, err)
}
