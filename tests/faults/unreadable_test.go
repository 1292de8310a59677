package faults

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"stillpoint.io/stillpoint/tests/fake"
)

// gadgets are a kind of a group that ends like those of Kubernetes.
var gadgets = fake.Kind{Group: "gadgets.k8s.io", Version: "v1", Resource: "gadgets", Kind: "Gadget", Namespaced: true}

// unreadable answers lists of a resource with an error; namespace is the only one
// that has an object which cannot be read, "" all.
func unreadable(resource, namespace string, err error) fake.Fault {
	return func(r fake.Request) error {
		if r.Resource.Resource == resource && r.Verb == "list" && (r.Namespace == "" || namespace == "" || r.Namespace == namespace) {
			return err
		}
		return nil
	}
}

// 20: one object that cannot be listed keeps nothing from being backed up, in no
// namespace and on no path, and what other kinds ask for is done.
func TestOneKindThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]fake.Fault{
		"a conversion webhook that is down": unreadable("gadgets", "", errors.New("conversion webhook for gadgets.k8s.io/v1, Kind=Gadget failed: connection refused")),
		"a Secret that cannot be decrypted": unreadable("secrets", "", errors.New("unable to transform key /registry/secrets/n1/s")),
		"a gateway that gives up":           unreadable("gadgets", "", apierrors.NewGenericServerResponse(http.StatusGatewayTimeout, "list", schema.GroupResource{}, "", "", 0, true)),
		"too many requests":                 unreadable("services", "", apierrors.NewTooManyRequestsError("later")),
		"a server that is down":             unreadable("services", "", apierrors.NewServiceUnavailable("down")),
	} {
		for path, change := range map[string]func(*velerov1.Backup){"group": fake.WithPolicy, "Velero": func(*velerov1.Backup) {}} {
			t.Run(name+", "+path, func(t *testing.T) {
				t.Parallel()
				bed := fake.New(t)
				bed.API.AddKind(gadgets)
				bed.API.Inject(fault)
				var apps []*fake.Workload
				for i := range 5 {
					app := fake.App{Namespace: fmt.Sprintf("n%d", i)}
					if i == 4 { // looked at with all others
						app.Annotations = fsfreeze
					}
					apps = append(apps, bed.Deploy(app))
				}
				v, backup := bed.Velero(), bed.Backup(change)
				own := v.Own
				v.Own = nil // it waits a second for each snapshot
				r := v.Backup(backup, apps[:4]...)
				assert.Empty(t, r.Dropped)
				v.Own = own
				r = v.Backup(backup, apps[4])
				assert.Empty(t, r.Dropped)
				assert.Empty(t, v.Errors())
				assert.NotEmpty(t, bed.Storage.Snapshots())
				assert.True(t, v.Said(logrus.WarnLevel, "Quiesce annotations cannot be looked for on objects of these kinds", "is not known"), v.Lines(logrus.WarnLevel))
				assert.Equal(t, []string{"sync", "freeze", "frozen", "thawed"}, bed.Node.FileSystem("n4", "db-data0").Journal())
			})
		}
	}
}

// 20: the objects of a kind that can be read still count: those of other
// namespaces, and those that were known before.
func TestWhatCanBeReadOfAKindCounts(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	var apps []*fake.Workload
	for i := range 6 {
		apps = append(apps, bed.Deploy(fake.App{Namespace: fmt.Sprintf("n%d", i)}))
	}
	bed.API.Put(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n5", Name: "s", Annotations: fsfreeze}})
	bed.API.Inject(unreadable("secrets", "n4", errors.New("unable to transform key /registry/secrets/n4/s")))
	v := bed.Velero()
	r := v.Backup(bed.Backup(fake.WithPolicy), apps...)
	assert.Empty(t, r.Dropped)
	assert.Empty(t, v.Errors())
	assert.Equal(t, []string{"sync", "freeze", "frozen", "thawed"}, bed.Node.FileSystem("n5", "db-data0").Journal())
	assert.Empty(t, bed.Node.FileSystem("n4", "db-data0").Journal())
	assert.True(t, v.Said(logrus.WarnLevel, "secrets in namespace n4"), v.Lines(logrus.WarnLevel))
}

// 20: an object that is known to ask, and cannot be read any more, is not passed
// over: what was asked for is a failed quiesce of its volumes.
func TestAnAskThatCannotBeReadAnyMore(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.API.AddKind(gadgets)
	app := bed.Deploy(fake.App{})
	other := bed.Deploy(fake.App{Namespace: "office", Name: "web"})
	bed.API.Put(t, gadget("shop", "g"))
	v, backup := bed.Velero(), bed.Backup(fake.WithPolicy)
	_, err := v.Pods.GetRelatedItems(podItem(t, bed, app.Pods[0].Name), backup) // sees the gadget
	require.NoError(t, err)
	bed.API.Inject(func(r fake.Request) error {
		if r.Resource.Resource == "gadgets" {
			return errors.New("conversion webhook failed")
		}
		return nil
	})
	r := v.Backup(backup, app, other)
	assert.Empty(t, r.Dropped)
	assert.Contains(t, r.Claims["db-data0"].Annotations["stillpoint.io/no-snapshot"], "Gadget shop/g asks to be quiesced")
	assert.Len(t, v.Errors(), 1)
	assert.Len(t, bed.Storage.Snapshots(), 1, "of the other namespace")
}

// 20: a controller that cannot be read is treated alike.
func TestAControllerThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for path, change := range map[string]func(*velerov1.Backup){"group": fake.WithPolicy, "Velero": func(*velerov1.Backup) {}} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{})
			bed.API.Inject(func(r fake.Request) error {
				if r.Resource.Resource == "replicasets" {
					return apierrors.NewForbidden(schema.GroupResource{Resource: "replicasets"}, r.Name, errors.New("no"))
				}
				return nil
			})
			v := bed.Velero()
			r := v.Backup(bed.Backup(change), app)
			assert.Empty(t, r.Dropped)
			assert.Empty(t, v.Errors())
			assert.Len(t, bed.Storage.Snapshots(), 1)
			assert.True(t, v.Said(logrus.WarnLevel, "Quiesce annotations of workloads in namespace shop cannot be looked for", "ReplicaSet"), v.Lines(logrus.WarnLevel))
		})
	}
}

// A moment's trouble of the API server is waited out.
func TestAMomentsTrouble(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze})
	left := 2
	bed.API.Inject(func(r fake.Request) error {
		if r.String() == "list pods shop" && left > 0 {
			left--
			return apierrors.NewServiceUnavailable("starting")
		}
		return nil
	})
	v := bed.Velero()
	r := v.Backup(bed.Backup(), app)
	assert.Empty(t, r.Dropped)
	assert.Empty(t, v.Errors())
	assert.Equal(t, []string{"sync", "freeze", "frozen", "thawed"}, bed.Node.FileSystem("shop", "db-data0").Journal())
}

func gadget(namespace, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "gadgets.k8s.io/v1", "kind": "Gadget"}}
	o.SetNamespace(namespace)
	o.SetName(name)
	o.SetAnnotations(fsfreeze)
	return o
}
