package restore

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// transient has the finalizers by which a controller protects an object while another
// one uses it, such as a snapshot that is being cut, a clone or an attachment. No
// controller removes them from a copy of the object.
var transient = []string{
	"/pvc-as-source-protection", "/cloning-protection", "/populate-target-protection",
	"/volumesnapshot-as-source-protection", "/volumesnapshot-bound-protection",
	"/volumesnapshot-in-group-protection", "/volumesnapshotcontent-bound-protection",
}

// StripFinalizers removes transient finalizers from an object that is backed up or
// restored. All others stay.
func StripFinalizers(object metav1.Object) {
	before := object.GetFinalizers()
	kept := slices.DeleteFunc(slices.Clone(before), func(finalizer string) bool {
		return strings.HasPrefix(finalizer, "external-attacher/") ||
			slices.ContainsFunc(transient, func(suffix string) bool { return strings.HasSuffix(finalizer, suffix) })
	})
	if len(kept) < len(before) {
		object.SetFinalizers(kept)
	}
}
